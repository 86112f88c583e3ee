"""Bytes moved by the kernel, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

COPY_BYTES = 8 * 2**20
_KERNEL_COPY_BYTES = 256 * 2**20  # one call; short enough that an interrupt does not wait for long
# What a kernel, a file system or a container's filter answers where it cannot copy between these two files.
_NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


def write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data` at a byte position of an open file."""
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(fd, view, position)
        view, position = view[done:], position + done


def copy_at(source: Path, start: int, num_bytes: int, fd: int, position: int) -> None:
    """Copy `num_bytes` at `start` of a file to a position of an open one, inside the kernel where it can.

    Raises:
        ValueError: the source ends before that.
    """
    with source.open("rb", buffering=0) as stream:
        done = _kernel_copy(stream.fileno(), start, num_bytes, fd, position)
        done += _plain_copy(stream.fileno(), start + done, num_bytes - done, fd, position + done)
    if done != num_bytes:
        raise ValueError(
            f"{source} ended at byte {start + done} while bytes {start} to {start + num_bytes} were copied from it; "
            "it changed or is damaged: restore it and run again"
        )


def _kernel_copy(source: int, start: int, num_bytes: int, fd: int, position: int) -> int:
    """How many bytes were copied before the end, or before the system refused."""
    done = 0
    while done < num_bytes and hasattr(os, "copy_file_range"):
        size = min(num_bytes - done, _KERNEL_COPY_BYTES)
        try:
            copied = os.copy_file_range(source, fd, size, start + done, position + done)
        except OSError as error:
            if error.errno in _NO_KERNEL_COPY:
                break
            raise
        if not copied:  # the end, or a file system that says 0 where it means no
            break
        done += copied
    return done


def _plain_copy(source: int, start: int, num_bytes: int, fd: int, position: int) -> int:
    buffer = memoryview(bytearray(min(num_bytes, COPY_BYTES)))
    done = 0
    while done < num_bytes:
        size = os.preadv(source, [buffer[: min(num_bytes - done, COPY_BYTES)]], start + done)
        if not size:
            break
        write_at(fd, buffer[:size], position + done)
        done += size
    return done


def partial_of(file: Path) -> Path:
    """Where a file is written before it gets its name."""
    return file.with_name(f"{file.name}.partial")


def commit(fd: int, file: Path) -> None:
    """Give the written and still open `partial_of(file)` its name, after its bytes are on the disk."""
    os.fsync(fd)
    os.replace(partial_of(file), file)


def write_text(file: Path, text: str) -> None:
    """Write a small file so that it is never seen in part."""
    with partial_of(file).open("wb") as out:
        out.write(text.encode())
        out.flush()
        commit(out.fileno(), file)


def sync_directory(directory: Path) -> None:
    """Put the names in a directory on the disk."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
