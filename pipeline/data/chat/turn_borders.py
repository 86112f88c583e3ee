"""Where a turn of the assistant begins and ends in the fixed text that a chat template writes around it."""

from __future__ import annotations

import functools
import re

from pipeline.data.chat.template import ChatTemplate, UnfitChatError, common_length
from pipeline.data.chat.template_forms import ANSWERED, ASKED


class TurnBorders:
    """The borders of turns in one template. special: matches the tokens that can end a turn; eos: the last of all."""

    def __init__(self, template: ChatTemplate, special: re.Pattern[str], eos: str | None) -> None:
        self.template, self.special, self._eos = template, special, eos

    def closing(self, after: str, has_calls: bool, bound: int, is_all: bool) -> int:
        """How many characters of what follows a turn's words end the turn: through its closing token.

        bound: where the next turn begins at the latest; is_all: whether it begins just there. A turn is closed by EOS.
        Without, by the last token before the next turn; where that is not known, one that calls tools by the last
        token, as the calls may be set off by tokens, and any other by the first, and those right behind.
        """
        ends = [match for match in self.special.finditer(after) if match.end() <= bound]
        if not ends:
            # A template that closes no turn: the model stops by writing what opens the next one.
            return self._next_token(after, bound) or bound
        if is_end := [match for match in ends if match.group() == self._eos]:
            return is_end[0].end()
        if has_calls or is_all:
            return ends[-1].end()
        stop = ends[0].end()
        for match in ends[1:]:
            stop = match.end() if match.start() == stop else stop
        return stop

    def _next_token(self, text: str, start: int) -> int:
        """Where the special token ends that stands at a place, but for white space; 0 if there is none."""
        rest = text[start:]
        following = self.special.match(rest, len(rest) - len(rest.lstrip()))
        return start + following.end() if following else 0

    def last_closing(self, after: str, has_calls: bool) -> int:
        """As `closing` for the last turn of a conversation, after which a template may have more to say."""
        known = self.known_closing
        is_all = not has_calls and after.startswith(known) and self._holds_token(known)
        if is_all and self._eos not in self.special.findall(after):
            return self.closing(after, has_calls, len(known), True)
        return self.closing(after, has_calls, len(after), False)

    def calls_closing(self, after: str, common: int, before_next: str) -> int | None:
        """As `closing` for calls after which a template has something else to say once they are answered, such as their
        ids: only the first `common` characters are the same. None if the end cannot be told."""
        if self._holds_token(after[:common]) or self._next_token(after, common):
            return self.closing(after, True, common, False)
        for end in (self._eos, self.known_closing):
            if end and self._holds_token(end) and (at := before_next.find(end)) >= 0:
                return at + self.line_or_token(end.rstrip())
        return None

    def shared(self, a: str, b: str) -> int:
        """Length of the common prefix, cut back where it ends inside a special token of either."""
        length = common_length(a, b)
        for text in (a, b):
            for match in self.special.finditer(text):
                if match.start() < length < match.end():
                    length = match.start()
        return length

    def _holds_token(self, text: str) -> bool:
        """Whether a special token is spelled in a text."""
        return self.special.search(text) is not None

    def after_header(self, gap: str) -> int | None:
        """Where the last role header in what stands before a turn ends, as far as it is a generation prompt."""
        header = self.template.generation_prompt
        opening = self.line_or_token(header[: self._first_token(header)]) or len(header)
        at = gap.rfind(header[:opening]) if header else -1
        if at < 0:
            return None
        common = self.shared(header, gap[at:])
        is_whole = common in (len(header), len(gap) - at)
        return at + (common if is_whole else self.line_or_token(gap[at : at + common]) or opening)

    def _first_token(self, text: str) -> int:
        """Where the first special token of a text ends; its length if there is none."""
        found = self.special.search(text)
        return found.end() if found else len(text)

    def line_or_token(self, text: str) -> int:
        """Where the last line or special token of a text ends; 0 if there is none."""
        return max([text.rfind("\n") + 1, *(match.end() for match in self.special.finditer(text))])

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
