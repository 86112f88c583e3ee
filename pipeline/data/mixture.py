"""An endless stream of packed rows from weighted sources, exactly resumable."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.packing import Overlong, Span, Spans, build_row, chat_spans, text_spans
from pipeline.data.tokens import TokenStore


class Mixture:
    """Chooses the next span: the source furthest behind its share, then the next of its shuffled spans.

    A weight multiplies a source's own tokens (LLaMA Pro, Table 6: 55B at 1.00 and 22B at 1.50): the share of source s
    is weight_s * tokens_s / sum. Every span of a source is drawn once per epoch; the order of an epoch depends on the
    seed, the source's name and the epoch only. A source's token count stays within a row per source of its share.
    """

    def __init__(self, names: Sequence[str], spans: Sequence[Spans], weights: Mapping[str, float], seed: int) -> None:
        for name, found in zip(names, spans, strict=True):
            if not len(found.table):
                counts = {key: value for key, value in vars(found).items() if key != "table" and value}
                raise ValueError(f"source {name!r} has nothing to train on ({counts or 'no documents'}); raise seq_len")
            if not weights[name] > 0:
                raise ValueError(f"source {name!r}: weight {weights[name]} must be positive")
        self.names, self.spans, self.seed = list(names), list(spans), seed
        wanted = np.array([weights[name] * found.num_tokens for name, found in zip(names, spans, strict=True)])
        self.shares: list[float] = (wanted / wanted.sum()).tolist()
        self.drawn = [0] * len(spans)
        self.epochs = [0] * len(spans)
        self.cursors = [0] * len(spans)
        self._orders = [self._order(index) for index in range(len(spans))]

    def _order(self, source: int) -> np.ndarray:
        # Seeded by name, so that adding a source does not reshuffle the others.
        entropy = [self.seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(self.names[source].encode()), self.epochs[source]]
        return np.random.default_rng(np.random.SeedSequence(entropy)).permutation(len(self.spans[source].table))

    def next(self) -> Span:
        """Draw one span."""
        total = sum(self.drawn)
        source = max(range(len(self.drawn)), key=lambda s: (self.shares[s] * total - self.drawn[s], self.shares[s], -s))
        if self.cursors[source] == len(self._orders[source]):
            self.epochs[source] += 1
            self.cursors[source] = 0
            self._orders[source] = self._order(source)
        row = self.spans[source].table[self._orders[source][self.cursors[source]]]
        self.cursors[source] += 1
        span = Span(source, *map(int, row))
        self.drawn[source] += span.length
        return span

    def state_dict(self) -> dict[str, list[int]]:
        """Where the draw stands."""
        return {"drawn": list(self.drawn), "epochs": list(self.epochs), "cursors": list(self.cursors)}

    def load_state_dict(self, state: Mapping[str, Sequence[int]]) -> None:
        """Continue from `state_dict`."""
        self.drawn, self.epochs, self.cursors = (list(state[key]) for key in ("drawn", "epochs", "cursors"))
        self._orders = [self._order(index) for index in range(len(self.spans))]


class PackedStream(Iterator[dict[str, np.ndarray]]):
    """Endless rows of `seq_len` tokens, each a dict of int64[T] (see `packing.build_row`) and its "spans", int64[N, 4].

    Text (`overlong=None`): every row is full and no token is lost. Documents enter as spans of at most seq_len tokens;
    a span as long as a row is a row of its own, so only the ends of documents are cut again where a row is full.
    Spans, not documents, are shuffled: a long file does not fill consecutive rows.
    Chats (`overlong` = truncate, skip or split): a conversation is never cut at the end of a row; a row begins with the
    oldest of `lookahead` waiting conversations and takes the longest that still fit, and what is left is padding.
    `plan` decides a row and `read` fetches its tokens, so that a process can plan all rows and read its own.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        weights: Mapping[str, float],
        seq_len: int,
        seed: int,
        overlong: Overlong | None = None,
        lookahead: int = 64,
    ) -> None:
        if seq_len < 2 or lookahead < 1:
            raise ValueError(f"seq_len={seq_len} must be at least 2 and lookahead={lookahead} at least 1")
        self.stores, self.seq_len, self.overlong, self.lookahead = list(stores), seq_len, overlong, lookahead
        names = [store.name for store in stores]
        if missing := sorted(set(names) ^ set(weights)):
            raise ValueError(f"sources {names} and weights {sorted(weights)} differ in {missing}")
        self.spans = [
            text_spans(store, seq_len) if overlong is None else chat_spans(store, seq_len, overlong) for store in stores
        ]
        self.mixture = Mixture(names, self.spans, weights, seed)
        self.num_rows = 0
        self._emitted = [0] * len(stores)
        self._waiting: list[Span] = []

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of every source in the rows so far."""
        return dict(zip(self.mixture.names, self._emitted, strict=True))

    @property
    def epochs(self) -> dict[str, float]:
        """How often every source has been seen."""
        totals = [spans.num_tokens for spans in self.spans]
        return {name: self.tokens[name] / total for name, total in zip(self.mixture.names, totals, strict=True)}

    def plan(self) -> list[Span]:
        """The spans of the next row."""
        row = self._plan_text() if self.overlong is None else self._plan_chat()
        for span in row:
            self._emitted[span.source] += span.length
        self.num_rows += 1
        return row

    def read(self, row: Sequence[Span]) -> dict[str, np.ndarray]:
        """The arrays of a planned row."""
        return build_row(row, self.stores, self.seq_len)

    def __next__(self) -> dict[str, np.ndarray]:
        row = self.plan()
        return {**self.read(row), "spans": np.array(row, dtype=np.int64)}

    def _plan_text(self) -> list[Span]:
        while True:
            span = self.mixture.next()
            if span.length == self.seq_len:
                return [span]
            room = self.seq_len - sum(waiting.length for waiting in self._waiting)
            self._waiting.append(span._replace(stop=min(span.stop, span.start + room)))
            if span.length >= room:
                row, rest = self._waiting, span._replace(start=span.start + room)
                self._waiting = [rest] if rest.length else []
                return row

    def _plan_chat(self) -> list[Span]:
        row: list[Span] = []
        room = self.seq_len
        while True:
            while len(self._waiting) < self.lookahead:
                self._waiting.append(self.mixture.next())
            fitting = [index for index, span in enumerate(self._waiting) if span.length <= room]
            if not fitting:
                return row
            best = max(fitting, key=lambda index: (self._waiting[index].length, -index)) if row else 0
            row.append(self._waiting.pop(best))
            room -= row[-1].length

    def rows_per_pass(self) -> int:
        """Rows in which as many tokens are drawn as all sources hold together (one epoch where weights are equal)."""
        fresh = PackedStream(
            self.stores, self._weights(), self.seq_len, self.mixture.seed, self.overlong, self.lookahead
        )
        total = sum(spans.num_tokens for spans in self.spans)
        while sum(fresh._emitted) < total:
            fresh.plan()
        return fresh.num_rows

    def _weights(self) -> dict[str, float]:
        totals = [spans.num_tokens for spans in self.spans]
        shares = zip(self.mixture.names, self.mixture.shares, totals, strict=True)
        return {name: share / total for name, share, total in shares}

    def _identity(self) -> dict[str, Any]:
        """What must agree for a saved state to mean the same rows."""
        return {
            "sources": self.mixture.names,
            "tokens": [spans.num_tokens for spans in self.spans],
            "shares": self.mixture.shares,
            "seq_len": self.seq_len,
            "seed": self.mixture.seed,
            "overlong": self.overlong,
            "lookahead": self.lookahead,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue with the very next row, as plain JSON data."""
        return {
            "identity": self._identity(),
            "num_rows": self.num_rows,
            "emitted": list(self._emitted),
            "waiting": [list(span) for span in self._waiting],
            "mixture": self.mixture.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises ValueError if it belongs to other data or another packing."""
        if state["identity"] != self._identity():
            raise ValueError(f"the saved stream is {state['identity']}, this one {self._identity()}; start afresh")
        self.num_rows, self._emitted = state["num_rows"], list(state["emitted"])
        self._waiting = [Span(*span) for span in state["waiting"]]
        self.mixture.load_state_dict(state["mixture"])
