"""A sandbox for programs that nobody has read: namespaces, a private file system, a system call filter and limits."""

from pipeline.evaluation.sandbox.levels import LEVELS
from pipeline.evaluation.sandbox.limits import Limits, Ran, RunProgram
from pipeline.evaluation.sandbox.pool import Sandbox, SandboxError, check_isolation

__all__ = ["LEVELS", "Limits", "Ran", "RunProgram", "Sandbox", "SandboxError", "check_isolation"]
