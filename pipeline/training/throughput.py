"""Tokens per second, time left, and the memory at its peak."""

from __future__ import annotations

import resource
import sys
import time

import torch


class Throughput:
    """Measures over the steps of this process; work before a resume is not in its rate."""

    def __init__(self, num_steps: int, first_step: int) -> None:
        self._num_steps, self._first, self._start = num_steps, first_step, time.monotonic()
        self._tokens = 0
        self._paused = 0.0

    def add(self, tokens: int) -> None:
        """Count the tokens of one optimizer step."""
        self._tokens += tokens

    def exclude(self, seconds: float) -> None:
        """Leave out time that was not training: validation, checkpoints."""
        self._paused += seconds

    @property
    def tokens_per_s(self) -> float:
        """Training tokens per second of training."""
        return self._tokens / max(1e-9, time.monotonic() - self._start - self._paused)

    def seconds_left(self, step: int) -> float:
        """From the mean time of a step, with all that is in it; `step` steps are done."""
        done = max(1, step - self._first)
        return (time.monotonic() - self._start) / done * (self._num_steps - step)


def peak_memory_bytes() -> int:
    """Peak of the device's allocator on CUDA, of the process's resident set otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
