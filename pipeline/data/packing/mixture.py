"""An endless stream of packed rows from weighted sources, exactly resumable."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pipeline.data.packing.draw import Mixture
from pipeline.data.packing.rows import Overlong, Span, build_row, chat_spans, text_spans
from pipeline.data.packing.schedule import Replay, Schedule, Shares, schedule
from pipeline.data.packing.window import Window, groups_of
from pipeline.data.tokens.store import TokenStore

Packing = Literal["fill", "first_fit"]


class PackedStream(Iterator[dict[str, np.ndarray]]):
    """Endless rows of `seq_len` tokens, each a dict of int64[T] (see `rows.build_row`) and its "spans", int64[N, 4].

    packing `fill`: every row is full and no token is lost. Documents enter as spans of at most seq_len tokens; a span
    as long as a row is a row of its own, so only the ends of documents are cut again where a row is full. Spans, not
    documents, are shuffled: a long file does not fill consecutive rows.
    packing `first_fit`: no span is cut again. A row begins with the oldest of `lookahead` waiting spans and takes the
    longest that still fit (first fit decreasing within a window), and what is left is padding. A pass over a source is
    placed before the next begins, and where all sources of the domain are seen equally often it ends with a row.
    Text (`overlong=None`) may be packed either way, by `first_fit` if nothing is said, chats (`overlong` = truncate,
    skip or split) by `first_fit` only.
    `plan` decides a row and `read` fetches its tokens, so that a process can plan all rows and read its own.

    weights: multiply a source's own tokens (LLaMA Pro, Table 6: 55B at 1.00 and 22B at 1.50): without `shares`, source
    s has the share weight_s * tokens_s / sum. shares, replay: see `schedule`; general: the sources that are replayed.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        weights: Mapping[str, float],
        seq_len: int,
        seed: int,
        overlong: Overlong | None = None,
        lookahead: int = 64,
        packing: Packing | None = None,
        shares: Shares = None,
        replay: Replay = None,
        general: Sequence[str] = (),
    ) -> None:
        if seq_len < 2 or lookahead < 1:
            raise ValueError(f"seq_len={seq_len} must be at least 2 and lookahead={lookahead} at least 1")
        self.packing = packing or "first_fit"
        if self.packing not in ("fill", "first_fit") or (self.packing == "fill" and overlong is not None):
            raise ValueError(f"packing={packing!r} must be fill or first_fit, and first_fit for conversations")
        self.stores, self.seq_len, self.overlong, self.lookahead = list(stores), seq_len, overlong, lookahead
        names = [store.name for store in stores]
        if missing := sorted(set(names) ^ set(weights)):
            raise ValueError(f"sources {names} and weights {sorted(weights)} differ in {missing}")
        for name, weight in weights.items():
            if not weight > 0:
                raise ValueError(f"source {name!r}: weight {weight} must be positive")
        self.spans = [
            text_spans(store, seq_len) if overlong is None else chat_spans(store, seq_len, overlong) for store in stores
        ]
        weighted = [weights[name] * spans.num_tokens for name, spans in zip(names, self.spans, strict=True)]
        self.mixture = Mixture(names, self.spans, schedule(names, weighted, shares, replay, general), seed)
        self._domain = [index for index, name in enumerate(names) if name not in general]
        self._groups = groups_of(self.spans, self.mixture.schedule, [name in general for name in names])
        found = {self._groups[index] for index in self._domain}
        # The group of all sources of the domain, if they are one.
        self._whole = found.pop() if len(found) == 1 else None
        self._units_until: dict[int, int] = {}  # passes
        self._units_of: dict[int, int] = {}  # tokens
        self._length: int | None = None
        self._last: int | None = None
        self._begin()

    def _begin(self) -> None:
        self.num_rows = 0
        self._emitted = [0] * len(self.stores)
        self._asked = [0.0] * len(self.stores)
        self._num_cut = 0
        self._waiting: list[Span] = []
        self._window = Window(self.lookahead, self.spans, self._groups, self._whole)

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of every source in the rows so far."""
        return dict(zip(self.mixture.names, self._emitted, strict=True))

    @property
    def epochs(self) -> dict[str, float]:
        """How often every source has been seen."""
        totals = [spans.num_tokens for spans in self.spans]
        return {name: self.tokens[name] / total for name, total in zip(self.mixture.names, totals, strict=True)}

    @property
    def efficiency(self) -> float:
        """Tokens in the rows so far over the room in them; the rest is padding."""
        return sum(self._emitted) / (self.num_rows * self.seq_len) if self.num_rows else 1.0

    def set_length(self, num_rows: int, last: int | None = None) -> None:
        """Say how many rows the run will take, which a schedule's progress is measured against.

        last: how many of these `first_fit` fills, the others being empty: a run in epochs ends with a document and not
        with a step.
        """
        self._length, self._last = num_rows, last if self.packing == "first_fit" else None
        self.mixture.num_tokens = num_rows * self.seq_len

    @property
    def unit_tokens(self) -> float:
        """Tokens of a unit that `batch` counts: at most, of a row."""
        return self.seq_len

    def batch(self, size: int) -> list[dict[str, np.ndarray]]:
        """The rows of a batch of so many units: rows, as they come."""
        return [self._arrays(row) for row in self.plan_batch(size)]

    def plan_batch(self, size: int) -> list[list[Span]]:
        """The spans of each row of a batch."""
        return [self.plan() for _ in range(size)]

    def plan(self) -> list[Span]:
        """The spans of the next row. Raises ValueError if the shares follow a schedule and the length is not known."""
        if not self.mixture.schedule.constant and self._length is None:
            raise ValueError("shares that change over a run need its length: call set_length first")
        if self._last is not None and self.num_rows >= self._last:
            return []
        row = self._fill() if self.packing == "fill" else self._first_fit()
        here = self.mixture.schedule.at((self.num_rows + 0.5) * self.seq_len / self._room)
        for index, share in enumerate(here):
            self._asked[index] += share * sum(span.length for span in row)
        for span in row:
            self._emitted[span.source] += span.length
        self.num_rows += 1
        return row

    def read(self, row: Sequence[Span]) -> dict[str, np.ndarray]:
        """The arrays of a planned row."""
        return build_row(row, self.stores, self.seq_len)

    def __next__(self) -> dict[str, np.ndarray]:
        return self._arrays(self.plan())

    def _arrays(self, row: Sequence[Span]) -> dict[str, np.ndarray]:
        return {**self.read(row), "spans": np.array(row, dtype=np.int64).reshape(-1, 4)}

    def _fill(self) -> list[Span]:
        while True:
            span = self.mixture.next()
            if span.length == self.seq_len:
                return [span]
            room = self.seq_len - sum(waiting.length for waiting in self._waiting)
            self._waiting.append(span._replace(stop=min(span.stop, span.start + room)))
            if span.length >= room:
                row, rest = self._waiting, span._replace(start=span.start + room)
                self._waiting = [rest] if rest.length else []
                self._num_cut += bool(rest.length)
                return row

    @property
    def _room(self) -> int:
        """Of the whole run, in tokens; 1 if its length is not known, when the shares stay as they are."""
        return (self._last or self._length or 0) * self.seq_len or 1

    def _first_fit(self) -> list[Span]:
        return self._window.row(self.seq_len, self._draw)

    def _draw(self, ahead: int) -> tuple[Span, int]:
        """A span and which pass over its source it belongs to."""
        # By the place the span will have: the tokens drawn fall behind where rows have padding.
        span = self.mixture.next((self.num_rows * self.seq_len + ahead) / self._room)
        return span, self.mixture.epochs[span.source]

    def units_of_tokens(self, num_tokens: int) -> int:
        """Rows that so many tokens take, padding not counted, as long as the shares are those of the beginning."""
        if self.packing == "fill":
            return -(-num_tokens // self.seq_len)
        if num_tokens not in self._units_of:
            fresh = self._afresh()
            while sum(fresh._emitted) < num_tokens:
                fresh.plan()
            self._units_of[num_tokens] = fresh.num_rows
        return self._units_of[num_tokens]

    def units_of_passes(self, num_passes: float) -> float:
        """Rows that `num_passes` passes over the domain take, as long as the shares are those of the beginning.

        A pass places every document of the domain once. Where its sources are not seen equally often, and with packing
        `fill`, it is as many of its tokens as the sources hold together.
        """
        whole = int(num_passes)
        if not self._ends_with_a_row:
            return num_passes * self._count_until(1)
        done = self._count_until(whole)
        return done if whole == num_passes else done + (num_passes - whole) * (self._count_until(whole + 1) - done)

    @property
    def _ends_with_a_row(self) -> bool:
        return self.packing == "first_fit" and self._whole is not None

    def _count_until(self, num_passes: int) -> int:
        if num_passes not in self._units_until:
            fresh = self._afresh()
            while not fresh._has_done(num_passes):
                fresh.plan()
            self._units_until[num_passes] = fresh.num_rows
        return self._units_until[num_passes]

    def _has_done(self, num_passes: int) -> bool:
        if self._ends_with_a_row and self._whole is not None:
            return self._window.passes[self._whole] >= num_passes
        total = sum(self.spans[index].num_tokens for index in self._domain)
        return sum(self._emitted[index] for index in self._domain) >= num_passes * total

    def _afresh(self) -> PackedStream:
        """The same stream at its beginning, whose shares stay as they are there."""
        fresh = copy.copy(self)
        first = Schedule((0.0,), self.mixture.schedule.shares[:1])
        fresh.mixture = Mixture(self.mixture.names, self.spans, first, self.mixture.seed)
        fresh._last = None
        fresh._begin()
        return fresh

    def summary(self) -> dict[str, Any]:
        """What the rows so far were made of, for a stage's metrics: plain JSON values by source.

        tokens, epochs, repeated tokens (`first_fit`: of spans seen before; `fill`: beyond one pass), shares asked and
        observed, and how rows were packed.
        """
        names, taken = self.mixture.names, sum(self._emitted)
        by_tokens = self.packing == "fill" or self.mixture.schedule.constant
        wanted = self.mixture.schedule.wanted(taken, self.mixture.num_tokens) if by_tokens else self._asked
        return {
            "tokens_by_source": self.tokens,
            "epochs_by_source": self.epochs,
            "repeated_tokens_by_source": dict(zip(names, self._repeated(), strict=True)),
            "shares_by_source": {
                name: {"asked": want / max(1, taken), "observed": self.tokens[name] / max(1, taken)}
                for name, want in zip(names, wanted, strict=True)
            },
            "packing": {
                "policy": self.packing,
                "rows": self.num_rows,
                "efficiency": self.efficiency,
                "documents_cut_at_a_row_end": self._num_cut,
                "overlong": {name: spans.counts() for name, spans in zip(names, self.spans, strict=True)},
            },
        }

    def _repeated(self) -> list[int]:
        if self.packing == "first_fit":
            return list(self._window.repeated)
        pairs = zip(self._emitted, self.spans, strict=True)
        return [max(0, emitted - spans.num_tokens) for emitted, spans in pairs]

    def _identity(self) -> dict[str, Any]:
        """What must agree for a saved state to mean the same rows."""
        planned = self.mixture.schedule
        return {
            "sources": self.mixture.names,
            "tokens": [spans.num_tokens for spans in self.spans],
            "points": list(planned.points),
            "shares": [list(row) for row in planned.shares],
            "num_tokens": None if planned.constant else self.mixture.num_tokens,
            "last": self._last,
            "seq_len": self.seq_len,
            "seed": self.mixture.seed,
            "packing": self.packing,
            "overlong": self.overlong,
            "lookahead": self.lookahead,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue with the very next row, the open row included, as plain JSON data."""
        return {
            "identity": self._identity(),
            "num_rows": self.num_rows,
            "num_cut": self._num_cut,
            "emitted": list(self._emitted),
            "asked": list(self._asked),
            "window": self._window.state_dict(),
            "waiting": [list(span) for span in self._waiting],
            "mixture": self.mixture.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises ValueError if it belongs to other data or another packing."""
        if state["identity"] != self._identity():
            raise ValueError(f"the saved stream is {state['identity']}, this one {self._identity()}; start afresh")
        self.num_rows, self._num_cut = state["num_rows"], state["num_cut"]
        self._emitted, self._asked = list(state["emitted"]), list(state["asked"])
        self._window.load_state_dict(state["window"])
        self._waiting = [Span(*span) for span in state["waiting"]]
        self.mixture.load_state_dict(state["mixture"])
