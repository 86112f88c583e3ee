"""Tokens per second, time left, the share of the device that was used, and the memory at its peak."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from pipeline.training.cost.flops import Cost, Window
from pipeline.training.cost.peak import Peak
from pipeline.training.kernels.document_separation import IGNORED

PADDING_SEGMENT = -1


def padding_of(row: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where a row holds no token, bool of its length."""
    return row["segment_ids"] == PADDING_SEGMENT if "segment_ids" in row else np.zeros(row["labels"].shape, dtype=bool)


@dataclass(frozen=True)
class Counts:
    """What needs FLOPs in rows: labelled tokens, `positions`, how many tokens are at each place of a document, and how
    many `rows` there are, one with several images counted for each."""

    labels: int = 0
    positions: tuple[int, ...] = ()
    rows: int = 0

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(self.positions)

    @classmethod
    def read(cls, state: Mapping[str, Any] | None) -> Counts | None:
        """From its fields in JSON; None for none."""
        return None if state is None else cls(**{**state, "positions": tuple(state["positions"])})

    def __add__(self, other: Counts) -> Counts:
        pairs = zip_longest(self.positions, other.positions, fillvalue=0)
        return Counts(self.labels + other.labels, tuple(one + two for one, two in pairs), self.rows + other.rows)

    def needed(self, cost: Cost) -> float:
        """FLOPs, forward and backward."""

        def pairs(window: Window) -> int:
            return sum(count * window.pairs(place) for place, count in enumerate(self.positions))

        return cost.needed(self.tokens, self.labels, pairs, self.rows)


NOTHING: Counts | None = Counts()


class Throughput:
    """Measures over the steps of this process; work before a resume is not in its rate.

    Args:
        num_steps: of the whole run.
        first_step: the steps that are done already.
        cost: of the model; None where it is not known, and then no FLOPs are.
        num_processes: that share the rows.
        before: of the steps that are done already; None: not known.
    """

    def __init__(
        self, num_steps: int, first_step: int, cost: Cost | None = None, num_processes: int = 1,
        before: Counts | None = NOTHING,
    ) -> None:  # fmt: skip
        self._num_steps, self._first, self._start = num_steps, first_step, time.monotonic()
        self._cost, self._num_processes, self._before = cost, num_processes, before
        self._labels, self._rows, self._positions = 0, 0, np.zeros(0, dtype=np.int64)
        self._paused = 0.0

    def add(self, rows: Sequence[Mapping[str, np.ndarray]]) -> int:
        """Count the rows of one optimizer step, those of all processes. Returns their tokens that are no padding."""
        found = 0
        for row in rows:
            self._rows += max(1, len(row.get("pixel_values", ())))
            self._labels += int((row["labels"] != IGNORED).sum())
            places = row["position_ids"][~padding_of(row)]
            self._count_positions(places)
            found += places.size
        return found

    def _count_positions(self, places: np.ndarray) -> None:
        found = np.bincount(places.ravel(), minlength=len(self._positions))
        found[: len(self._positions)] += self._positions
        self._positions = found

    @property
    def _here(self) -> Counts:
        return Counts(self._labels, tuple(self._positions.tolist()), self._rows)

    @property
    def counts(self) -> Counts | None:
        """Of the whole run so far; None: not known."""
        return None if self._before is None else self._before + self._here

    def exclude(self, seconds: float) -> None:
        """Leave out time that was not training: validation, checkpoints."""
        self._paused += seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of training, without padding."""
        return int(self._positions.sum()) / self._seconds

    def seconds_left(self, step: int) -> float:
        """From the mean time of a step, with all that is in it; `step` steps are done."""
        done = max(1, step - self._first)
        return (time.monotonic() - self._start) / done * (self._num_steps - step)

    def flops(self) -> dict[str, float]:
        """What the counted rows needed, without padding and masked pairs; empty if the cost is not known.

        Returns:
            training_flops: of the whole run over all processes; flops_per_token: a token that is not padding, forward
            and backward, on average; flops_per_token_6nd: by that rule; flops_per_s, flops_per_s_6nd: on each process.
        """
        here, whole = self._here, self.counts
        if self._cost is None or not (tokens := here.tokens):
            return {}
        needed, usual = here.needed(self._cost), self._cost.six_nd(tokens)
        seconds = self._seconds * self._num_processes
        return {
            **({} if whole is None else {"training_flops": round(whole.needed(self._cost))}),
            "flops_per_token": round(needed / tokens),
            "flops_per_token_6nd": round(usual / tokens),
            "flops_per_s": round(needed / seconds),
            "flops_per_s_6nd": round(usual / seconds),
        }

    @property
    def _seconds(self) -> float:
        return max(1e-9, time.monotonic() - self._start - self._paused)


def utilisation(metrics: Mapping[str, Any], best: Peak) -> dict[str, Any]:
    """Model FLOPs utilisation: of FLOPs actually needed (`mfu`), and by 6ND (`mfu_6nd`), which credits a run for
    gradients that a frozen model has no need of and can exceed 1; empty without `Throughput.flops`.
    """
    if "flops_per_s" not in metrics:
        return {}
    return {
        "mfu": round(metrics["flops_per_s"] / best.flops_per_s, 4),
        "mfu_6nd": round(metrics["flops_per_s_6nd"] / best.flops_per_s, 4),
        "peak_flops_per_s": round(best.flops_per_s),
        "peak_source": best.source,
    }


def peak_memory_bytes() -> int:
    """Peak of the device's allocator on CUDA, of the process's resident set otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
