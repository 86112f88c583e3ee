"""What the assistant wrote of a rendered conversation, found by aligning renderings with each other.

The text of a turn is where its marks stand (see `marks`). It begins where the generation prompt ends: what is rendered
with that prompt up to the turn is compared with what stands before the turn in the whole conversation. It ends with the
token that closes it: what is rendered up to and with the turn is compared with what stands after it there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.data.chat.marks import Marked, Place, places
from pipeline.data.chat.template import ChatTemplate, Options, UnfitChatError
from pipeline.data.chat.template_forms import Messages
from pipeline.data.chat.turn_borders import TurnBorders

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
    """Aligns conversations in one template."""

    def __init__(self, template: ChatTemplate, borders: TurnBorders) -> None:
        self.template, self.borders = template, borders

    def align(self, messages: Messages, tools: Messages = (), options: Options = None) -> Aligned:
        """The rendering and what to learn of it; `spans` are (message, start, stop), in order.

        Raises UnfitChatError if the template refuses the conversation, leaves something of it out, or renders it so
        that the assistant's part cannot be told.
        """
        text, generated = self.template.render_tracked(messages, tools, options)
        marked, found = self._marked(text, messages, tools, options)
        left_out = _check_said(marked, found, messages)
        one = _Rendering(self.template, self.borders, text, marked, found, options)
        turns = [one.turn(i) for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [(turn.message, turn.start, turn.stop) for turn in turns]
        if _marks_itself(self.template.source(tools)):
            spans = self._within(text, generated, turns)
        return Aligned(text, turns, spans, left_out)

    def _marked(self, text: str, messages: Messages, tools: Messages, options: Options) -> tuple[Marked, list[Place]]:
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
            ends = list(self.borders.special.finditer(closing))
            if ends and not closing[ends[-1].end() :].strip():
                stop = begun + ends[-1].end()
            spans.append((owner.message, begun, stop))
        if not spans:
            raise UnfitChatError("the chat template's generation blocks hold nothing", f"in {text[:60]!r}")
        return spans


@dataclass(frozen=True)
class _Rendering:
    """One conversation under alignment."""

    template: ChatTemplate
    borders: TurnBorders
    text: str
    marked: Marked
    found: Sequence[Place]
    options: Options

    def turn(self, index: int) -> Turn:
        # A template may name a called function again with what it returned: a part is where it stands first.
        own = [place for place in _first(self.found) if self.marked.parts[place.part].message == index]
        said, last = own[0].start, max(own, key=_stop)
        others = (place for place in self.found if self.marked.parts[place.part].message != index)
        if any(said <= place.start and place.stop <= last.stop for place in others):
            raise UnfitChatError(CANNOT, f"others speak within message {index}")
        return Turn(index, self._start(index, said), said, last.stop, self._stop(index, last))

    def _prefix(self, stop: int, prompt: bool) -> tuple[str, list[Place]]:
        """What is rendered of the first messages alone; nothing if the template refuses them."""
        try:
            rendered = self.template.render(self.marked.messages[:stop], self.marked.tools, self.options, prompt)
        except UnfitChatError:
            return "", []
        return places(rendered, self.marked) or ("", [])

    def _start(self, index: int, said: int) -> int:
        """Where the generation prompt of a turn ends. A role header is never the model's, prompted for or not."""
        start, header = self._given(index, said), self.template.generation_prompt
        return start + len(header) if header and self.text[start:said].startswith(header) else start

    def _given(self, index: int, said: int) -> int:
        borders = self.borders
        last = max((place for place in self.found if place.stop <= said), key=_stop, default=None)
        begin = last.stop if last else 0
        gap = self.text[begin:said]
        text, found = self._prefix(index, True)
        ahead = max(found, key=_stop, default=None)
        if text and (ahead and ahead.part) == (last and last.part):
            given = text[ahead.stop if ahead else 0 :] + self.template.header
            common = borders.shared(given, gap)
            if common in (len(gap), len(given)):
                return begin + common
        else:
            common = 0
        prompted = borders.after_header(gap)
        cut = borders.line_or_token(gap[:common]) if prompted is None else prompted
        return begin + cut if cut else said

    def _stop(self, index: int, last: Place) -> int:
        """Where a turn is closed."""
        borders, silent, after = self.borders, last.stop, self.text[last.stop :]
        has_calls = bool(self.marked.messages[index].get("tool_calls"))
        if index == len(self.marked.messages) - 1:
            return silent + borders.last_closing(after, has_calls)
        following = min((place.start for place in self.found if place.start >= silent), default=len(self.text))
        before_next, common = self.text[silent:following], 0
        for closing in self._closings(index, last):
            if before_next.startswith(closing):
                return silent + borders.closing(after, has_calls, len(closing), True)
            common = max(common, borders.shared(closing, before_next))
        if not has_calls:
            return silent + borders.closing(after, False, common, False)
        if (end := borders.calls_closing(after, common, before_next)) is None:
            raise UnfitChatError(CANNOT, f"where the calls of message {index} end")
        return silent + end

    def _closings(self, index: int, last: Place) -> Iterator[str]:
        """What follows a turn's last words where it is the last: by itself, and before a generation prompt."""
        for prompt in (False, True):
            text, found = self._prefix(index + 1, prompt)
            stop = next((place.stop for place in found if place.part == last.part), None)
            if stop is not None:
                yield text[stop:].removesuffix(self.template.generation_prompt if prompt else "")


def _stop(place: Place) -> int:
    return place.stop


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


def _check_said(marked: Marked, found: Sequence[Place], messages: Messages) -> bool:
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
