"""Landlock: a process gives up the file system but for a few places. Needs no right, so it works inside containers.

Handled are opening, making, moving and removing files, and nothing else: that a file exists stays visible, and changes
of modes, owners and times are the system call filter's to forbid. See the kernel's user-space API, landlock.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from pipeline.evaluation.sandbox import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_ASK_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_OF_VERSION_3 = (1 << 15) - 1  # up to moving files between directories and truncating them
_DEVICE_CONTROL = 1 << 15  # from version 5
_LEAST_VERSION = 3
"""Before Linux 6.2 files anywhere can be truncated."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def confine(readable: Sequence[str], devices: Sequence[str], writable: str) -> None:
    """Give up all files but these, for this process and all that it starts, for good.

    Args:
        readable: files and directories that may be read, and run.
        devices: files that may be read and written.
        writable: a directory in which everything is allowed.

    Raises:
        OSError: the kernel has no Landlock, or one that is too old.
    """
    version = kernel.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION, about="Landlock")
    if version < _LEAST_VERSION:
        raise OSError(errno.ENOSYS, f"Landlock has version {version}; {_LEAST_VERSION} is needed (Linux 6.2)")
    handled = _ALL_OF_VERSION_3 | (_DEVICE_CONTROL if version >= 5 else 0)
    attributes = _Ruleset(handled)
    rules = kernel.syscall(
        _CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0, about="Landlock"
    )  # fmt: skip
    for place in readable:
        _allow(rules, place, _READ_FILE | _EXECUTE | (_READ_DIR if os.path.isdir(place) else 0))
    for place in devices:
        _allow(rules, place, _READ_FILE | _WRITE_FILE)
    _allow(rules, writable, handled)
    kernel.syscall(_RESTRICT_SELF, rules, 0, about="Landlock")
    os.close(rules)


def _allow(rules: int, place: str, access: int) -> None:
    descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    rule = _PathBeneath(access, descriptor)
    kernel.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0, about=f"Landlock rule for {place}")
    os.close(descriptor)
