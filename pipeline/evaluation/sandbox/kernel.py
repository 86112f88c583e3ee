"""The Linux system calls that isolation needs and Python lacks, by ctypes. A failure is an OSError that names the call.

Constants are those of the kernel's user-space headers; they are the same on every architecture used here.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = 1024, 2048, 4096, 16384, 1 << 18, 1 << 21
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_GET_SECCOMP, PR_SET_SECCOMP = 1, 4, 21, 22
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 24, 36, 38
SIGKILL = 9

# flags of a mount as statvfs reports them -> as mount(2) wants them
_KEPT = {1: MS_RDONLY, 2: MS_NOSUID, 4: MS_NODEV, 8: MS_NOEXEC, 1024: MS_NOATIME, 2048: MS_NODIRATIME}
_ST_RELATIME = 4096
_LAST_CAPABILITY = 63
_OCTAL = re.compile(r"\\([0-7]{3})")  # how the kernel writes blanks in names

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object, about: str = "") -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{f' {about}' if about else ''}: {os.strerror(code)}")
    return result


def syscall(number: int, *arguments: Any, about: str) -> int:
    """A system call that libc has no name for: pointers, integers and None as they are."""
    return _call("syscall", ctypes.c_long(number), *arguments, about=about)


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_* flags for new ones."""
    _call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3], about=f"{source} at {target}")


def detach(target: str) -> None:
    """Unmount a tree of mounts, lazily."""
    _call("umount2", os.fsencode(target), MNT_DETACH, about=target)


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of this mount namespace and put the old root at `old`, below it."""
    _call("pivot_root", os.fsencode(new), os.fsencode(old), about=new)


def bind(source: str, target: str) -> None:
    """Show `source`, with all that is mounted below it, at `target`, which exists."""
    mount(source, target, None, MS_BIND | MS_REC)


def mount_points(proc: str, except_below: str) -> list[str]:
    """Where things are mounted in this namespace, as /proc at `proc` says; nothing at or below `except_below`."""
    table = Path(f"{proc}/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    points = [_OCTAL.sub(lambda match: chr(int(match[1], 8)), line.split(" ")[4]) for line in table.splitlines()]
    return [point for point in points if point != except_below and not point.startswith(f"{except_below}/")]


def make_read_only(point: str) -> None:
    """Remount one mount read-only and without set-uid bits.

    The other flags of a mount that a less privileged namespace took over are locked, so they are handed in again.
    """
    found = os.statvfs(point).f_flag
    kept = sum(flag for bit, flag in _KEPT.items() if found & bit) | (MS_RELATIME if found & _ST_RELATIME else 0)
    mount("none", point, None, MS_REMOUNT | MS_BIND | kept | MS_RDONLY | MS_NOSUID)


def prctl(option: int, *arguments: int, about: str = "") -> int:
    """prctl(2); arguments that are not given are 0. `about` names the option in an error."""
    longs = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _call("prctl", ctypes.c_int(option), *longs, about=about or str(option))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)


def drop_bounding_set() -> None:
    """Give up every capability for whatever is executed from here on."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # the kernel has no more of them
            return
