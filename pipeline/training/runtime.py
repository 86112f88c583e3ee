"""What a training loop is given beside the model: rows, and how the run is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.training.cost.flops import Cost
from pipeline.training.deadline import Deadline

Row = Mapping[str, np.ndarray]


class StoppedError(Exception):
    """Training was asked to stop; its checkpoint is written."""


class RowStream(Protocol):
    """An endless, resumable stream of batches of packed rows; a batch counts units, rows or examples.

    A row may hold "spans", int64[N, 4]: what it was made of (source, document, first token, token after the last), and
    "pixel_values", float32[N, C, H, W]: the images of its tokens, in order.
    """

    @property
    def unit_tokens(self) -> float: ...
    def batch(self, size: int) -> Sequence[Row]: ...
    def units_of_tokens(self, num_tokens: int) -> int: ...
    def units_of_passes(self, num_passes: float) -> float: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out, none of which changes its result beyond the order of float sums.

    Attributes:
        directory: holds `checkpoints/`, `metrics.jsonl` and, if asked for, `samples.jsonl`.
        micro_batch: rows of one forward pass on one process.
        checkpoint_every_s: seconds between checkpoints; 0 writes one after every step.
        keep_checkpoints: how many to keep.
        progress: called with what a person wants to see.
        should_stop: asked after every step; a checkpoint is written before the loop ends.
        deadline: asked likewise, where the time is limited.
        log_samples: write down of every step which spans of which documents were in its rows.
        cost: FLOPs of the model, if they are known; for the rate that is reported.
        compiling: which of "step" and "validation" will compile the blocks when this process first comes to it.
    """

    directory: Path
    micro_batch: int
    checkpoint_every_s: float
    keep_checkpoints: int
    progress: Callable[..., None] = field(default=lambda **_: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)
    deadline: Deadline = field(default_factory=Deadline)
    log_samples: bool = False
    cost: Cost | None = None
    compiling: frozenset[str] = frozenset()
