"""The same room by bubblewrap, for machines that let it make namespaces and nobody else.

Such are those whose AppArmor profile or set-uid bit is bubblewrap's alone. Its own first process stands for init. Its
scratch has no limit on the number of files, which `--tmpfs` does not take: an empty file costs the kernel some memory
that only the program's time bounds here, where `room` has `nr_inodes`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.sandbox import room

_SIGNALS_FROM = 128
"""bubblewrap ends with this and the number of the signal that its program ended by."""


def installed() -> bool:
    """Whether bubblewrap is there and of use: root needs none of it, and its limits would not bind root's programs."""
    return shutil.which("bwrap") is not None and os.geteuid() != 0


def command(job: Mapping[str, Any], filter_from: int | None) -> list[str]:
    """The command line that enters the room, to be followed by the program's own.

    Args:
        job: a launcher's job.
        filter_from: a descriptor that reads the system call filter; None runs without one.
    """
    interpreter, size = job["interpreter"], str(job["limits"]["scratch_mb"] << 20)
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    words += ["--uid", str(room.USER), "--gid", str(room.USER), "--hostname", room.HOST, "--cap-drop", "ALL"]
    for place in interpreter["shown"]:
        words += ["--symlink", os.readlink(place), place] if os.path.islink(place) else ["--ro-bind", place, place]
    for place in interpreter["packages"]:
        words += ["--ro-bind", place, f"{room.PACKAGES}/{Path(place).name}"]
    for name in room.DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for place in interpreter["hidden"]:
        words += ["--tmpfs", place, "--remount-ro", place]
    words += ["--symlink", room.SCRATCH, "/tmp", "--symlink", room.SCRATCH, "/dev/shm"]
    words += ["--perms", "0700", "--size", size, "--tmpfs", room.SCRATCH, "--chdir", room.SCRATCH, "--remount-ro", "/"]
    return [*words, *(["--seccomp", str(filter_from)] if filter_from is not None else []), "--"]


def signal_of(status: int) -> int | None:
    """The signal that the program ended by, from bubblewrap's exit status."""
    return status - _SIGNALS_FROM if status > _SIGNALS_FROM else None
