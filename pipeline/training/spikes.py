"""Steps that are not taken: gradients that are not finite, and losses or gradients far above the recent mean."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np


class SpikeGuard:
    """Says of each step whether its update may be made, as OLMo-core's skip-step optimizers do.

    A step is skipped if its loss or its gradient norm is not finite, or more than `sigmas` standard deviations above
    the mean of the steps taken within the last `window`; the latter only once half a window of steps is known. A
    skipped step used up its data and its place in the schedule: only its update is left out.

    Args:
        sigmas: standard deviations; None skips no finite step.
        window: steps that are looked back on.
        max_skipped: more skipped steps than this among the last `window` end the run.
    """

    def __init__(self, sigmas: float | None, window: int, max_skipped: int) -> None:
        self._sigmas, self._window, self._max_skipped = sigmas, window, max_skipped
        self._taken: deque[tuple[float, float]] = deque(maxlen=window)
        self._skipped: list[int] = []

    @property
    def num_skipped(self) -> int:
        """Steps skipped since the run began."""
        return len(self._skipped)

    def reason(self, step: int, loss: float, grad_norm: float) -> str | None:
        """Why this step must be skipped, or None; counted either way, so asked once for each step.

        Args:
            step: counts from 1.
            loss: mean over the labels of the global batch, nats.
            grad_norm: of the whole gradient, before clipping.

        Raises:
            ValueError: too many of the last steps were skipped.
        """
        found = self._reason(loss, grad_norm)
        if found is None:
            self._taken.append((loss, grad_norm))
            return None
        self._skipped.append(step)
        lately = sum(one > step - self._window for one in self._skipped)
        if lately > self._max_skipped:
            raise ValueError(
                f"{lately} of the last {min(step, self._window)} steps were skipped, more than max_skipped_steps="
                f"{self._max_skipped}; the last is step {step}: {found}. Lower the learning rate (lr), look at the "
                "data of these steps (samples.jsonl), or allow more"
            )
        return found

    def _reason(self, loss: float, grad_norm: float) -> str | None:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
        if self._sigmas is None or 2 * len(self._taken) < self._window:
            return None
        means, deviations = np.mean(self._taken, axis=0), np.std(self._taken, axis=0)
        for name, value, mean, deviation in zip(
            ("loss", "gradient norm"), (loss, grad_norm), means, deviations, strict=True
        ):
            if value > mean + self._sigmas * deviation:
                return f"the {name} is {value:.4g}, recent mean {mean:.4g}, std {deviation:.2g}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain JSON data."""
        return {"taken": [list(one) for one in self._taken], "skipped": list(self._skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._taken = deque(((loss, norm) for loss, norm in state["taken"]), maxlen=self._window)
        self._skipped = list(state["skipped"])
