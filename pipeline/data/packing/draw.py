"""Which span comes next: sources by their shares of the tokens, spans of a source shuffled, each once an epoch."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data.packing.rows import Span, Spans
from pipeline.data.packing.schedule import Schedule

_STATE = ("drawn", "epochs", "cursors", "wanted")


class Mixture:
    """Chooses the next span: the source furthest behind its share, then the next of its shuffled spans.

    Shares are shares of tokens: what a source should have had by now is the integral of its share over the run so far.
    How far the run is, is told by the tokens drawn out of `num_tokens`, or by who asks where rows have padding.
    Every span of a source is drawn once per epoch; the order of an epoch depends on the seed, the source's name and the
    epoch only. A source's token count stays within a row per source of its share.
    """

    def __init__(self, names: Sequence[str], spans: Sequence[Spans], shares: Schedule, seed: int) -> None:
        for name, found in zip(names, spans, strict=True):
            if not len(found.table):
                counts = found.counts() or "no documents"
                raise ValueError(f"source {name!r} has nothing to train on ({counts}); raise seq_len")
        self.names, self.spans, self.schedule, self.seed = list(names), list(spans), shares, seed
        self.num_tokens: int | None = None
        self.drawn = [0] * len(spans)
        self.epochs = [0] * len(spans)
        self.cursors = [0] * len(spans)
        self.wanted = [0.0] * len(spans)
        self._orders = [self._order(index) for index in range(len(spans))]

    @property
    def shares(self) -> list[float]:
        """The shares at this point of the run, by the tokens drawn."""
        if self.schedule.constant or not self.num_tokens:
            return list(self.schedule.shares[0])
        return self.schedule.at(sum(self.drawn) / self.num_tokens)

    def _order(self, source: int) -> np.ndarray:
        # Seeded by name, so that adding a source does not reshuffle the others.
        entropy = [self.seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(self.names[source].encode()), self.epochs[source]]
        return np.random.default_rng(np.random.SeedSequence(entropy)).permutation(len(self.spans[source].table))

    def next(self, progress: float | None = None) -> Span:
        """Draw one span. progress: how far the run is, 0 to 1; None: as the tokens drawn say."""
        if self.schedule.constant:
            progress = None
        shares = self.shares if progress is None else self.schedule.at(progress)
        source = self._furthest_behind(progress is None, shares)
        if self.cursors[source] == len(self._orders[source]):
            self.epochs[source] += 1
            self.cursors[source] = 0
            self._orders[source] = self._order(source)
        row = self.spans[source].table[self._orders[source][self.cursors[source]]]
        self.cursors[source] += 1
        span = Span(source, *map(int, row))
        self.drawn[source] += span.length
        if progress is not None:
            self.wanted = [want + share * span.length for want, share in zip(self.wanted, shares, strict=True)]
        return span

    def _furthest_behind(self, by_tokens: bool, shares: Sequence[float]) -> int:
        wanted = self.schedule.wanted(sum(self.drawn), self.num_tokens) if by_tokens else self.wanted
        behind = [want - drawn for want, drawn in zip(wanted, self.drawn, strict=True)]
        # A source whose share has come down to 0 still gets what it lacks, but is not begun.
        able = [s for s in range(len(behind)) if shares[s] > 0 or behind[s] >= 1]
        return max(able, key=lambda s: (behind[s], shares[s], -s))

    def state_dict(self) -> dict[str, list]:
        """Where the draw stands."""
        return {key: list(getattr(self, key)) for key in _STATE}

    def load_state_dict(self, state: Mapping[str, Sequence]) -> None:
        """Continue from `state_dict`."""
        for key in _STATE:
            setattr(self, key, list(state[key]))
        self._orders = [self._order(index) for index in range(len(self.spans))]
