"""Where a result came from: code, command, machine, package versions. Recorded, never hashed."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ["torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "safetensors", "numpy", "lm_eval"]
REPOSITORY = Path(__file__).resolve().parents[3]
"""The folder that holds `pipeline/` and `stages/`."""


def collect(argv: Sequence[str]) -> dict[str, Any]:
    """{git, argv, host, system, python, packages}; `argv` is the driver's command line."""
    return {
        "git": git_state(REPOSITORY),
        "argv": list(argv),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """{commit, dirty} of the checkout that holds `folder`, or None outside of one or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
