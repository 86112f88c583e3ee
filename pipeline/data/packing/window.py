"""First fit within a window, a pass at a time: nothing of a source comes again while something of it still waits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from math import isclose
from typing import Any

from pipeline.data.packing.rows import Span, Spans
from pipeline.data.packing.schedule import Schedule


class Window:
    """Spans that wait for a row, and which of them may be placed.

    A row begins with the oldest of `lookahead` waiting spans and takes the longest that still fit. The draw runs ahead
    of the rows and goes on into a source's next pass while the last spans of this one wait: of a pass nothing is placed
    before all of the pass before it is, and its last rows begin with the longest, which leaves short ones to fill them.
    Sources of one group (see `groups_of`) go through their passes together.

    whole: the group whose pass also ends with a row, so that a number of passes is a number of rows; None: no group's.
    """

    def __init__(self, lookahead: int, spans: Sequence[Spans], groups: Sequence[int], whole: int | None) -> None:
        self.lookahead, self.groups, self.whole = lookahead, list(groups), whole
        self._sizes = [0] * (max(groups) + 1)
        for group, found in zip(groups, spans, strict=True):
            self._sizes[group] += len(found.table)
        self.passes = [0] * len(self._sizes)
        self.repeated = [0] * len(spans)
        self._left = list(self._sizes)
        self._waiting: list[tuple[int, int, int, Span]] = []  # tokens, group, pass
        self._waiting_tokens = 0

    @property
    def waiting(self) -> list[Span]:
        """The spans that wait, the oldest first."""
        return [span for _, _, _, span in self._waiting]

    def row(self, seq_len: int, draw: Callable[[int], tuple[Span, int]]) -> list[Span]:
        """The spans of the next row.

        draw: gives the next span and which pass of its source it belongs to; it is told how many tokens of room come
        before the span's place, counted from the start of this row.
        """
        row: list[Span] = []
        room, current = seq_len, list(self.passes)
        while True:
            while len(self._waiting) < self.lookahead:
                self._draw(draw, seq_len - room)
            found = self._find(room, current, oldest=not row and not self._ending)
            while found is None and not row:  # one source of a group is ahead: all that waits is of its next pass
                self._draw(draw, 0)
                found = self._find(room, current, oldest=True)
            if found is None:
                return row
            row.append(self._place(found))
            room -= row[-1].length
            group = self.groups[row[-1].source]
            if group != self.whole:
                current[group] = self.passes[group]

    def oldest(self, draw: Callable[[int], tuple[Span, int]]) -> Span:
        """The next span in the order of the draw, but that none of a pass comes before all of the pass before it."""
        while (found := self._find(sys.maxsize, self.passes, oldest=True)) is None:
            self._draw(draw, 0)
        return self._place(found)

    @property
    def _ending(self) -> bool:
        return self.whole is not None and self._left[self.whole] <= self.lookahead

    def _draw(self, draw: Callable[[int], tuple[Span, int]], taken: int) -> None:
        span, number = draw(taken + self._waiting_tokens)
        self._waiting.append((span.length, self.groups[span.source], number, span))
        self._waiting_tokens += span.length

    def _find(self, room: int, current: Sequence[int], oldest: bool) -> int | None:
        """Which waiting span comes next: the oldest, or the longest that fits, of the current passes."""
        best, longest = None, 0
        for index, (length, group, number, _) in enumerate(self._waiting):
            if longest < length <= room and number == current[group]:
                if oldest:
                    return index
                best, longest = index, length
        return best

    def _place(self, index: int) -> Span:
        length, group, number, span = self._waiting.pop(index)
        self._waiting_tokens -= length
        if number:
            self.repeated[span.source] += length
        self._left[group] -= 1
        if not self._left[group]:
            self.passes[group] += 1
            self._left[group] = self._sizes[group]
        return span

    def state_dict(self) -> dict[str, Any]:
        """What waits and how far every pass is, as plain JSON data."""
        return {
            "waiting": [[*span, number] for _, _, number, span in self._waiting],
            "passes": list(self.passes),
            "left": list(self._left),
            "repeated": list(self.repeated),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        found = [(Span(*span), number) for *span, number in state["waiting"]]
        self._waiting = [(span.length, self.groups[span.source], number, span) for span, number in found]
        self._waiting_tokens = sum(span.length for span in self.waiting)
        self.passes, self._left, self.repeated = (list(state[key]) for key in ("passes", "left", "repeated"))


def groups_of(spans: Sequence[Spans], shares: Schedule, apart: Sequence[bool]) -> list[int]:
    """For every source the number of its group: sources that are seen equally often all along a run.

    apart: sources that are replayed, which share no group with the others.
    """
    rates = [
        [row[source] / found.num_tokens if found.num_tokens else 0.0 for row in shares.shares]
        for source, found in enumerate(spans)
    ]
    groups: list[int] = []
    for source, rate in enumerate(rates):
        alike = (
            groups[other]
            for other in range(source)
            if apart[other] == apart[source] and any(rate) and all(map(isclose, rate, rates[other]))
        )
        groups.append(next(alike, max(groups, default=-1) + 1))
    return groups
