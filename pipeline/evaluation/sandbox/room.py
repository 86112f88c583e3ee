"""The file system that a judged program sees: built in a mount namespace of its own, gone with its last process.

A tmpfs as the root, read-only; the interpreter and the system's libraries, read-only, at their usual places; five
devices; and /scratch, writable and of limited size, which is also /tmp. No /proc, no /sys, no /etc, no home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.sandbox import kernel

SCRATCH, PACKAGES = "/scratch", "/packages"
USER = 1000
"""User and group of the program inside."""

HOST = "sandbox"
DEVICES = ("null", "zero", "full", "random", "urandom")
_OLD = "/oldroot"
_STAGE = "/tmp"  # any directory will do: it is covered in this namespace only, and only while the room is built
_SCRATCH_FILES = 4096


def build(interpreter: Mapping[str, Any], scratch_bytes: int) -> None:
    """Enter a new mount namespace and make it the room. Needs CAP_SYS_ADMIN in the user namespace.

    Args:
        interpreter: the fields of an `Interpreter`.
        scratch_bytes: size of /scratch.

    Raises:
        OSError: a step failed; its text names the step.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    os.mkdir(_STAGE + _OLD)
    kernel.pivot_root(_STAGE, _STAGE + _OLD)
    os.chdir("/")
    for place in interpreter["shown"]:
        _show(place, place)
    for place in interpreter["packages"]:
        _show(place, f"{PACKAGES}/{Path(place).name}")
    for name in DEVICES:
        _show(f"/dev/{name}", f"/dev/{name}")
    for place in interpreter["hidden"]:
        kernel.mount("tmpfs", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=4k,mode=755")
    os.mkdir(SCRATCH)
    os.symlink(SCRATCH, "/tmp")
    os.symlink(SCRATCH, "/dev/shm")
    _close()
    options = f"size={scratch_bytes},nr_inodes={_SCRATCH_FILES},mode=700,uid={USER},gid={USER}"
    kernel.mount("tmpfs", SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)


def _close() -> None:
    """Remove the way back to the old root and make all that is left read-only."""
    points = kernel.mount_points(f"{_OLD}/proc", _OLD)
    kernel.detach(_OLD)
    os.rmdir(_OLD)
    for point in points:
        kernel.make_read_only(point)


def _show(source: str, target: str) -> None:
    """Make what the old root has at `source` visible at `target`; a symbolic link stays one."""
    origin, place = Path(_OLD + source), Path(target)
    if place.exists() or place.is_symlink():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_symlink():
        place.symlink_to(os.readlink(origin))
        return
    if origin.is_dir():
        place.mkdir()
    else:
        place.touch()
    kernel.bind(str(origin), target)
