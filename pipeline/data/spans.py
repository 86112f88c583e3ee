"""What the assistant wrote of a rendered conversation, found by aligning renderings with each other.

The text of a turn is where its marks stand (see `marks`). It begins where the generation prompt ends: what is rendered
with that prompt up to the turn is compared with what stands before the turn in the whole conversation. It ends with the
token that closes it: what is rendered up to and with the turn is compared with what stands after it there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.data.marks import Marked, Message, Place, places
from pipeline.data.template import ChatTemplate, UnfitChatError
from pipeline.data.template_forms import ANSWERED, ASKED

CANNOT = "the assistant's part cannot be told from what the chat template renders"
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@functools.cache
def _marks_itself(source: str) -> bool:
    return bool(_GENERATION_BLOCK.search(source))


class Turn(NamedTuple):
    """A message of the assistant in a rendering: characters [start, stop) are what the model writes, [said, silent) of
    them its own words, without the fixed text around these."""

    message: int
    start: int
    said: int
    silent: int
    stop: int


class Aligned(NamedTuple):
    """A rendered conversation, the ranges to learn by turn, and whether the template left reasoning out."""

    text: str
    turns: list[Turn]
    spans: list[tuple[int, int, int]]
    reasoning_left_out: bool


class Aligner:
    """Aligns conversations in one template. special: matches the tokens that can end a turn; eos: the last of all."""

    def __init__(self, template: ChatTemplate, special: re.Pattern[str], eos: str | None) -> None:
        self.template, self._special, self._eos = template, special, eos

    def align(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), options: Mapping[str, Any] | None = None
    ) -> Aligned:
        """The rendering and what to learn of it; `spans` are (message, start, stop), in order.

        Raises UnfitChatError if the template refuses the conversation, leaves something of it out, or renders it so
        that the assistant's part cannot be told.
        """
        text, generated = self.template.render_tracked(messages, tools, options)
        marked, found = self._marked(text, messages, tools, options)
        left_out = _check_said(marked, found, messages)
        one = _Rendering(self, text, marked, found, options)
        turns = [one.turn(i) for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [(turn.message, turn.start, turn.stop) for turn in turns]
        if _marks_itself(self.template.source(tools)):
            spans = self._within(text, generated, turns)
        return Aligned(text, turns, spans, left_out)

    def _marked(
        self, text: str, messages: Sequence[Message], tools: Sequence[Message], options: Mapping[str, Any] | None
    ) -> tuple[Marked, list[Place]]:
        for inside in (False, True):
            marked = Marked.of(messages, tools, inside)
            try:
                found = places(self.template.render(marked.messages, marked.tools, options), marked)
            except UnfitChatError:
                continue
            if found and found[0] == text:
                return marked, found[1]
        raise UnfitChatError(CANNOT, f"it depends on the very text of a message; {text[:60]!r}")

    def _within(
        self, text: str, blocks: Sequence[tuple[int, int]], turns: Sequence[Turn]
    ) -> list[tuple[int, int, int]]:
        """The template's own blocks, each with its message, without what the generation prompt gives and what stands
        after the token that closes the turn."""
        spans = []
        for start, stop in _joined(blocks):
            owner = next((turn for turn in reversed(turns) if turn.start < stop), None)
            if owner is None or not text[start:stop]:
                continue
            begun = max(start, owner.start)
            closing = text[begun:stop]
            ends = list(self._special.finditer(closing))
            if ends and not closing[ends[-1].end() :].strip():
                stop = begun + ends[-1].end()
            spans.append((owner.message, begun, stop))
        if not spans:
            raise UnfitChatError("the chat template's generation blocks hold nothing", f"in {text[:60]!r}")
        return spans

    def closing(self, after: str, has_calls: bool, bound: int, is_all: bool) -> int:
        """How many characters of what follows a turn's words end the turn: through its closing token.

        bound: where the next turn begins at the latest; is_all: whether it begins just there. A turn is closed by EOS.
        Without, by the last token before the next turn; where that is not known, one that calls tools by the last
        token, as the calls may be set off by tokens, and any other by the first, and those right behind.
        """
        ends = [match for match in self._special.finditer(after) if match.end() <= bound]
        if not ends:
            # A template that closes no turn: the model stops by writing what opens the next one.
            space = len(after[bound:]) - len(after[bound:].lstrip())
            following = self._special.match(after, bound + space)
            return following.end() if following else bound
        if is_end := [match for match in ends if match.group() == self._eos]:
            return is_end[0].end()
        if has_calls or is_all:
            return ends[-1].end()
        stop = ends[0].end()
        for match in ends[1:]:
            stop = match.end() if match.start() == stop else stop
        return stop

    def last_closing(self, after: str, has_calls: bool) -> int:
        """As `closing` for the last turn of a conversation, after which a template may have more to say."""
        known = self.known_closing
        is_all = not has_calls and after.startswith(known) and self._special.search(known) is not None
        if is_all and self._eos not in self._special.findall(after):
            return self.closing(after, has_calls, len(known), True)
        return self.closing(after, has_calls, len(after), False)

    def shared(self, a: str, b: str) -> int:
        """Length of the common prefix, cut back where it ends inside a special token of either."""
        length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for text in (a, b):
            for match in self._special.finditer(text):
                if match.start() < length < match.end():
                    length = match.start()
        return length

    def after_header(self, gap: str) -> int | None:
        """Where the last role header in what stands before a turn ends, as far as it is a generation prompt."""
        header = self.template.generation_prompt
        opening = self.line_or_token(header[: self.first_token(header)]) or len(header)
        at = gap.rfind(header[:opening]) if header else -1
        if at < 0:
            return None
        common = self.shared(header, gap[at:])
        is_whole = common in (len(header), len(gap) - at)
        return at + (common if is_whole else self.line_or_token(gap[at : at + common]) or opening)

    def first_token(self, text: str) -> int:
        """Where the first special token of a text ends; its length if there is none."""
        found = self._special.search(text)
        return found.end() if found else len(text)

    def line_or_token(self, text: str) -> int:
        """Where the last line or special token of a text ends; 0 if there is none."""
        return max([text.rfind("\n") + 1, *(match.end() for match in self._special.finditer(text))])

    @functools.cached_property
    def known_closing(self) -> str:
        """What closes a turn of the assistant that another follows, where that is the same with and without it."""
        more, done = ([ASKED, ANSWERED, ASKED][:number] for number in (3, 2))
        try:
            text, ended = self.template.render(more), self.template.render(done)
        except UnfitChatError:
            return ""
        closing = ended[ended.rfind(words := str(ANSWERED["content"])) + len(words) :]
        return closing if text[text.rfind(words) + len(words) :].startswith(closing) else ""


class _Rendering:
    """One conversation under alignment."""

    def __init__(
        self, by: Aligner, text: str, marked: Marked, found: Sequence[Place], options: Mapping[str, Any] | None
    ) -> None:
        self._by, self._text, self._marked, self._found, self._options = by, text, marked, found, options

    def turn(self, index: int) -> Turn:
        # A template may name a called function again with what it returned: a part is where it stands first.
        own = [place for place in _first(self._found) if self._marked.parts[place.part].message == index]
        said, last = own[0].start, max(own, key=lambda place: place.stop)
        others = (place for place in self._found if self._marked.parts[place.part].message != index)
        if any(said <= place.start and place.stop <= last.stop for place in others):
            raise UnfitChatError(CANNOT, f"others speak within message {index}")
        return Turn(index, self._start(index, said), said, last.stop, self._stop(index, last))

    def _prefix(self, stop: int, prompt: bool) -> tuple[str, list[Place]]:
        """What is rendered of the first messages alone; nothing if the template refuses them."""
        try:
            rendered = self._by.template.render(self._marked.messages[:stop], self._marked.tools, self._options, prompt)
        except UnfitChatError:
            return "", []
        return places(rendered, self._marked) or ("", [])

    def _start(self, index: int, said: int) -> int:
        """Where the generation prompt of a turn ends. A role header is never the model's, prompted for or not."""
        start, header = self._given(index, said), self._by.template.generation_prompt
        return start + len(header) if header and self._text[start:said].startswith(header) else start

    def _given(self, index: int, said: int) -> int:
        by = self._by
        before = [place for place in self._found if place.stop <= said]
        last = max(before, key=lambda place: place.stop) if before else None
        begin = last.stop if last else 0
        gap = self._text[begin:said]
        text, found = self._prefix(index, True)
        ahead = max(found, key=lambda place: place.stop) if found else None
        if (ahead and ahead.part) != (last and last.part) or not text:
            prompted = by.after_header(gap)
            return said if prompted is None else begin + prompted
        given = text[ahead.stop if ahead else 0 :] + by.template.header
        common = by.shared(given, gap)
        if common in (len(gap), len(given)):
            return begin + common
        if (prompted := self._by.after_header(gap)) is not None:
            return begin + prompted
        cut = by.line_or_token(gap[:common])
        return begin + cut if cut else said

    def _stop(self, index: int, last: Place) -> int:
        """Where a turn is closed."""
        by, silent, after = self._by, last.stop, self._text[last.stop :]
        has_calls = bool(self._marked.messages[index].get("tool_calls"))
        if index == len(self._marked.messages) - 1:
            return silent + by.last_closing(after, has_calls)
        following = min((place.start for place in self._found if place.start >= silent), default=len(self._text))
        before_next = self._text[silent:following]
        closings = list(self._closings(index, last))
        if (exact := next(filter(before_next.startswith, closings), None)) is not None:
            return silent + by.closing(after, has_calls, len(exact), True)
        common = max((by.shared(closing, before_next) for closing in closings), default=0)
        if has_calls and not by.closing(after, True, common, False):
            raise UnfitChatError(CANNOT, f"where the calls of message {index} end")
        return silent + by.closing(after, has_calls, common, False)

    def _closings(self, index: int, last: Place) -> Iterator[str]:
        """What follows a turn's last words where it is the last: by itself, and before a generation prompt."""
        for prompt in (False, True):
            text, found = self._prefix(index + 1, prompt)
            stop = next((place.stop for place in found if place.part == last.part), None)
            if stop is not None:
                yield text[stop:].removesuffix(self._by.template.generation_prompt if prompt else "")


def _first(found: Sequence[Place]) -> list[Place]:
    """The first place of every part, in order."""
    there: dict[int, Place] = {}
    for place in found:
        there.setdefault(place.part, place)
    return list(there.values())


def _joined(blocks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of characters, those that meet as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in blocks:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _check_said(marked: Marked, found: Sequence[Place], messages: Sequence[Message]) -> bool:
    """Whether reasoning was left out. Raises UnfitChatError if anything else was."""
    there = {place.part for place in found}
    missing = [part for number, part in enumerate(marked.parts) if number not in there]
    for part in missing:
        if part.kind == "tool":
            raise UnfitChatError("the chat template leaves out the tools", repr(part.text[:60]))
        if part.kind == "call":
            raise UnfitChatError("the chat template leaves out a tool call", repr(part.text[:60]))
        if part.kind == "content":
            reason = f"the chat template leaves out a message of the {messages[part.message]['role']}"
            raise UnfitChatError(reason, repr(part.text[:60]))
    for index, message in enumerate(messages):
        own = [number for number, part in enumerate(marked.parts) if part.message == index]
        if message["role"] == "assistant" and not there & set(own):
            raise UnfitChatError("the chat template leaves out a message of the assistant", repr(message)[:60])
    return any(part.kind == "reasoning" for part in missing)
