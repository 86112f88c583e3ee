"""Files that are on the disk, and that others may read as far as the umask lets them, whoever wrote them.

Temporary files are made for their owner alone and keep that when they get their name: those of `tempfile`, and those
through which the safetensors library writes. On a cluster nobody else could then read a model.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def umask() -> int:
    """This process's umask."""
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    found = os.umask(0o077)  # it can only be read by setting it, which other threads would see
    os.umask(found)
    return found


def grant(path: Path) -> None:
    """Give a file, or each file in a directory, the permissions that a newly opened one gets; none is taken away."""
    wanted = 0o666 & ~umask()
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file() and not file.is_symlink() and wanted & ~(mode := stat.S_IMODE(file.stat().st_mode)):
            file.chmod(mode | wanted)


def sync(path: Path) -> None:
    """Put the bytes of a file, or the names in a directory, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
