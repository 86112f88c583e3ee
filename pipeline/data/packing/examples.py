"""Batches of a number of examples, each batch packed by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.packing.mixture import PackedStream
from pipeline.data.packing.rows import Span


class ExampleStream(PackedStream):
    """A `PackedStream` whose batches count examples: documents and conversations, or pieces of those that were split.

    Which examples make up a batch does not depend on how they are packed: they come in the order of the draw, every
    one once a pass, and those of a batch share as few rows as first fit decreasing finds. A batch has as many examples
    as were asked for and as many rows as it needs. `plan`, and the length of a run, are by examples.
    """

    def _begin(self) -> None:
        super()._begin()
        self._num_laid = 0

    @property
    def unit_tokens(self) -> float:
        """Mean tokens of an example."""
        return sum(spans.num_tokens for spans in self.spans) / sum(len(spans.table) for spans in self.spans)

    @property
    def efficiency(self) -> float:
        """Tokens in the rows so far over the room in them; the rest is padding."""
        return sum(self._emitted) / (self._num_laid * self.seq_len) if self._num_laid else 1.0

    def plan_batch(self, size: int) -> list[list[Span]]:
        """The spans of each row of a batch of `size` examples; the last batch of a run in epochs may have fewer."""
        rows = lay([span for _ in range(size) for span in self.plan()], self.seq_len)
        self._num_laid += len(rows)
        return rows

    def _first_fit(self) -> list[Span]:
        return [self._window.oldest(self._draw)]

    def summary(self) -> dict[str, Any]:
        """See `PackedStream.summary`."""
        found = super().summary()
        return {**found, "packing": {**found["packing"], "rows": self._num_laid, "examples": self.num_rows}}

    def state_dict(self) -> dict[str, Any]:
        """See `PackedStream.state_dict`."""
        return {**super().state_dict(), "num_laid": self._num_laid}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `PackedStream.load_state_dict`."""
        super().load_state_dict(state)
        self._num_laid = state["num_laid"]

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "batch_unit": "examples"}


def lay(spans: Sequence[Span], seq_len: int) -> list[list[Span]]:
    """Rows that hold these spans, each whole: the longest first, each in the first row that has room for it."""
    rows: list[list[Span]] = []
    room: list[int] = []
    for span in sorted(spans, key=lambda one: -one.length):
        index = next((i for i, left in enumerate(room) if span.length <= left), len(rows))
        if index == len(rows):
            rows.append([])
            room.append(seq_len)
        rows[index].append(span)
        room[index] -= span.length
    return rows
