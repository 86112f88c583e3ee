"""Measures a run as it goes, keeps the weights of its best step, and says when a limit is passed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.records.curves import TrackRecord
from pipeline.training.methods.optim import rate_of
from pipeline.training.micro_batches import MicroBatches
from pipeline.training.parallel.checkpoint import keep_steps, load_weights, save_weights
from pipeline.training.settings import Settings
from pipeline.training.tracking.measure import BaseValues, Measure, Tracking

BEST = "best"
"""Directory beside the checkpoints: what trains, as it stood after the best step."""


class Tracker:
    """Draws no random number and changes no weight until `restore`; every process calls the same.

    Args:
        batches: of the model, which is in evaluation mode whenever it is measured.
        trainable, optimizer: as for checkpoints.
        directory: of the run.
    """

    def __init__(
        self,
        tracking: Tracking,
        base: BaseValues,
        accelerator: Any,
        batches: MicroBatches,
        trainable: Mapping[str, torch.nn.Parameter],
        optimizer: Any,
        directory: Path,
    ) -> None:
        self.track, self.measures, self.base = tracking.track, tracking.measures, base
        self._accelerator, self._batches = accelerator, batches
        self._trainable, self._optimizer, self._folder = trainable, optimizer, directory / BEST
        self.stopped: str | None = None
        self.best: tuple[int, int, dict[str, float]] | None = None
        self.num_measured, self.seconds = 0, 0.0
        self._in_checkpoint: set[int] = set()

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the weights after this step are to be measured."""
        return step in (0, num_steps) or step % self.track.every == 0

    def measure(self, step: int, tokens: int) -> TrackRecord:
        """Measure the model, keep its weights if they are the best so far, and note if a limit is passed."""
        started = time.monotonic()
        values = {one.name: self._value(one) for one in self.measures}
        over = self.track.over(values)
        if over is not None:
            self.stopped = over
        elif self.track.keep_best and self._key(values) < (self._key(self.best[2]) if self.best else math.inf):
            self.best = (step, tokens, values)
            save_weights(self._folder, step, self._trainable, self._optimizer)
            # What the newest checkpoint calls the best stays: a process that goes on from there may need it.
            keep_steps(self._folder, {step, *self._in_checkpoint})
        self.num_measured += 1
        self.seconds += time.monotonic() - started
        return TrackRecord(step, tokens, values, self.base.values)

    def restore(self, step: int) -> bool:
        """Put the weights of the best step in place if those after `step`, the last, are others; whether they are."""
        if self.best is None or self.best[0] == step:
            return False
        load_weights(self._folder, self.best[0], self._trainable, self._optimizer)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain JSON data."""
        measured = {"num_measured": self.num_measured, "seconds": self.seconds}
        return {"best": self.best, "stopped": self.stopped, **measured}

    def saved(self) -> None:
        """A checkpoint with `state_dict` is complete: older weights are of no more use."""
        self._in_checkpoint = {self.best[0]} if self.best else set()
        if self.track.keep_best:
            keep_steps(self._folder, self._in_checkpoint)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state_dict`; None: from the beginning, whatever an earlier process left."""
        if state is not None:
            self.best = tuple(state["best"]) if state["best"] else None  # type: ignore[assignment]
            self.stopped, self.num_measured, self.seconds = state["stopped"], state["num_measured"], state["seconds"]
        self.saved()

    def summary(self, step: int, num_steps: int, settings: Settings) -> dict[str, Any]:
        """As metrics: what was measured at the cost of how many seconds, which step was kept, and why the run ended.

        Args:
            step: the last, of `num_steps` that were planned.
        """
        found: dict[str, Any] = {"num_tracked": self.num_measured, "track_s": round(self.seconds, 2)}
        if self.best is not None:
            found |= {"kept_step": self.best[0], "kept_tokens": self.best[1], "kept": self.best[2]}
        if self.stopped is not None:
            found["stopped"] = f"stopped after step {step} of {num_steps}: {self.stopped}"
            if step < num_steps:
                share = rate_of(settings, max(0, step - 1), num_steps) / settings.lr
                found["stopped"] += (
                    f". The learning rate stood at {share:.0%} of its peak, on a schedule for {num_steps} steps: a run "
                    "planned for fewer gives another model"
                )
        return found

    def _key(self, values: Mapping[str, float]) -> float:
        assert self.track.keep_best is not None
        return values[self.track.keep_best]

    def _value(self, measure: Measure) -> float:
        if measure.of_base:
            total = self._batches.divergence_sum(measure.rows, self.base.logits[measure.name])
        else:
            total = self._batches.loss_sum(measure.rows)
        return self._accelerator.reduce(total, "sum").item() / measure.divisor
