"""Tokens per second, time left, the share of the device that was used, and the memory at its peak."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
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


class Throughput:
    """Measures over the steps of this process; work before a resume is not in its rate.

    Args:
        num_steps: of the whole run.
        first_step: the steps that are done already.
        cost: of the model; None where it is not known, and then no FLOPs are.
        num_processes: that share the rows.
    """

    def __init__(self, num_steps: int, first_step: int, cost: Cost | None = None, num_processes: int = 1) -> None:
        self._num_steps, self._first, self._start = num_steps, first_step, time.monotonic()
        self._cost, self._num_processes = cost, num_processes
        self._tokens = self._labels = self._padding = 0
        self._positions = np.zeros(0, dtype=np.int64)
        self._paused = 0.0

    def add(self, rows: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Count the rows of one optimizer step, those of all processes."""
        for row in rows:
            self._tokens += row["input_ids"].size
            self._labels += int((row["labels"] != IGNORED).sum())
            places = row["position_ids"][~padding_of(row)]
            self._padding += row["input_ids"].size - places.size
            self._count_positions(places)

    def _count_positions(self, places: np.ndarray) -> None:
        found = np.bincount(places.ravel(), minlength=len(self._positions))
        found[: len(self._positions)] += self._positions
        self._positions = found

    def exclude(self, seconds: float) -> None:
        """Leave out time that was not training: validation, checkpoints."""
        self._paused += seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of training, without padding."""
        return (self._tokens - self._padding) / self._seconds

    def seconds_left(self, step: int) -> float:
        """From the mean time of a step, with all that is in it; `step` steps are done."""
        done = max(1, step - self._first)
        return (time.monotonic() - self._start) / done * (self._num_steps - step)

    def flops(self) -> dict[str, float]:
        """What the counted rows needed, without padding and masked pairs; empty if the cost is not known.

        Returns:
            flops_per_token: a token that is not padding, forward and backward, on average; flops_per_token_6nd: by that
            rule; flops_per_s, flops_per_s_6nd: on each process.
        """
        tokens = self._tokens - self._padding
        if self._cost is None or not tokens:
            return {}
        needed, usual = self._cost.needed(tokens, self._labels, self._pairs), self._cost.six_nd(tokens)
        seconds = self._seconds * self._num_processes
        return {
            "flops_per_token": round(needed / tokens),
            "flops_per_token_6nd": round(usual / tokens),
            "flops_per_s": round(needed / seconds),
            "flops_per_s_6nd": round(usual / seconds),
        }

    def _pairs(self, window: Window) -> int:
        return sum(int(count) * window.pairs(place) for place, count in enumerate(self._positions))

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
