"""What can go wrong, by who has to act: the request, a stored artifact, or a stage that failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

EXIT_INTERRUPTED = 130
"""Exit status of a driver that was asked to stop, as shells report it for Ctrl-C."""


class PipelineError(Exception):
    """Every error that the engine reports on purpose; its text is meant to be read without a traceback."""


class ConfigError(PipelineError):
    """The request is wrong, or the machine cannot serve it. Raised by the driver before anything is launched."""


class ArtifactError(PipelineError):
    """Something stored is missing, incomplete, or not what its manifest or its pinned hash says."""


class GateError(PipelineError):
    """A model was built and evaluated, and lost more of what its base could do than the gate allows."""


class StageError(PipelineError):
    """A worker failed.

    Attributes:
        stage: name of the stage.
        directory: the uncommitted `.partial` directory; its `log.txt` is the whole log.
        log: the last lines of that log, without blank ones.
        command: shell command that reruns this worker alone.
    """

    def __init__(self, stage: str, directory: Path, message: str, log: Sequence[str], command: str) -> None:
        self.stage, self.directory, self.message = stage, directory, message
        self.log, self.command = list(log), command
        super().__init__(stage, directory, message)

    def __str__(self) -> str:
        lines = [f"stage {self.stage} failed: {self.message}"]
        if self.log:
            lines += [f"the last lines of {self.directory / 'log.txt'}:", *(f"  | {line}" for line in self.log)]
        lines.append(f"to rerun only this: {self.command}")
        return "\n".join(lines)


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C was received. A stage that saved its state raises it to end; so does the driver.

    Not an `Exception`, so that a stage's `except Exception` cannot swallow it.
    """
