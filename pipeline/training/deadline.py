"""Stopping in time where a job's time is limited."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

SLURM_END = "SLURM_JOB_END_TIME"
"""Set by Slurm (22.05 and later) in a job: when it will be killed, in seconds since 1970."""
CAREFUL = 1.5
"""What the longest of each is multiplied by: the next may take longer."""


class Deadline:
    """Says when the last moment has come to write a checkpoint, given how long things took so far.

    What they took in the processes before a resume counts: a checkpoint keeps it.

    Args:
        end: when the process will be killed, in seconds since 1970; None: never.
        margin_s: seconds that must be left after the checkpoint, for the processes to end.
    """

    def __init__(self, end: float | None = None, margin_s: float = 10.0) -> None:
        self._end, self._margin_s = end, margin_s
        self._longest = {"step": 0.0, "validation": 0.0, "save": 0.0}

    @classmethod
    def of(cls, launch: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Deadline:
        """The earlier of `launch.time_limit_s` from now and the end of the Slurm job that this is, if any.

        Raises:
            ValueError: the limit is not more than 0.
        """
        ends = []
        if (limit := launch.get("time_limit_s")) is not None:
            if limit <= 0:
                raise ValueError(f"launch.time_limit_s={limit} must be more than 0, or null")
            ends.append(time.time() + limit)
        if environment.get(SLURM_END, "").isdigit():
            ends.append(float(environment[SLURM_END]))
        return cls(min(ends, default=None))

    def took(self, what: str, seconds: float) -> None:
        """Remember how long a "step", a "validation" or a "save" took."""
        self._longest[what] = max(self._longest[what], seconds)

    def reached(self, ahead: str = "step") -> bool:
        """Whether what is ahead, a "step" or a "validation", and then a checkpoint might not end in time."""
        if self._end is None:
            return False
        return time.time() + CAREFUL * (self._longest[ahead] + self._longest["save"]) + self._margin_s > self._end

    def state_dict(self) -> dict[str, float]:
        """What took longest, in seconds."""
        return dict(self._longest)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what earlier processes learned."""
        for what, seconds in state.items():
            self.took(what, seconds)
