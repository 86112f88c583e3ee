"""What a judged program may use, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

Outcome = Literal["finished", "raised", "exited", "killed", "timeout", "memory", "output"]
"""finished: ran to its end. raised: an exception reached the top. exited: left before its end. killed: by a signal.
timeout, memory, output: stopped for using more than its limit."""


@dataclass(frozen=True)
class Limits:
    """Limits of one program. Raises ValueError for one that is not positive.

    Attributes:
        cpu_s: seconds of CPU time of a process; whole ones, as the kernel counts them.
        wall_s: seconds from the start of the interpreter to its end.
        memory_mb: MiB that all its processes may hold together, and that one may map.
        processes: processes and threads at once.
        scratch_mb: MiB in the scratch directory; also the largest file.
        output_kb: KiB of standard output, and as much of standard error.
        packages: packages that it may import besides the standard library.
    """

    cpu_s: int
    wall_s: float
    memory_mb: int
    processes: int
    scratch_mb: int
    output_kb: int
    packages: tuple[str, ...] | list[str]

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "packages" and not value > 0:
                raise ValueError(f"sandbox limit {name}={value} must be positive")
        if self.cpu_s != int(self.cpu_s):
            raise ValueError(f"sandbox limit cpu_s={self.cpu_s} must be a whole number of seconds")


@dataclass(frozen=True)
class Ran:
    """What one program did.

    Attributes:
        outcome: see `Outcome`.
        error: what went wrong in a few words, such as "AssertionError" or "signal 11"; empty if it finished.
        stdout, stderr: what it wrote, up to the limit; bytes that are no UTF-8 are replaced.
        wall_s: seconds that it took.
    """

    outcome: Outcome
    error: str
    stdout: str
    stderr: str
    wall_s: float

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.outcome == "finished"


RunProgram = Callable[[str], Ran]
"""Runs a Python program where it can do no harm. A program that crashes or never ends is an answer, not an error."""
