"""Bytes moved by the kernel, and files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.file_io import sync

COPY_BYTES = 2**20  # fits into a core's cache
WRITE_BACK_BYTES = 8 * 2**20
_KERNEL_COPY_BYTES = 256 * 2**20  # one call; short enough that an interrupt does not wait for long
# What a kernel, a file system or a container's filter answers where it cannot copy between these two files.
_NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


def write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data` at a byte position of an open file."""
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(fd, view, position)
        view, position = view[done:], position + done


def write_back(fd: int, position: int, num_bytes: int) -> None:
    """Have the kernel begin to bring a written range to the disk, while more is computed.

    Else it begins when the file is synced, or after many seconds. It does not wait for the disk, unless that is busy.
    """
    if num_bytes:  # none would mean all that follows; Linux writes the range out, and drops pages that it has written
        advise(fd, position, num_bytes, "DONTNEED")


def advise(fd: int, start: int, num_bytes: int, advice: str) -> None:
    """Give advice on a range of a file, by the end of its POSIX name, where the system takes it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, start, num_bytes, getattr(os, f"POSIX_FADV_{advice}"))


def copy_at(source: Path, start: int, num_bytes: int, fd: int, position: int) -> None:
    """Copy `num_bytes` at `start` of a file to a position of an open one that is empty there.

    Inside the kernel where it can, and holes stay holes.

    Raises:
        ValueError: the source ends before that.
    """
    end = start + num_bytes
    with source.open("rb", buffering=0) as stream:
        copied_to = min(end, os.fstat(stream.fileno()).st_size)
        advise(stream.fileno(), start, num_bytes, "SEQUENTIAL")
        for first, last in _data_ranges(stream.fileno(), start, copied_to):
            to = position + first - start
            done = _kernel_copy(stream.fileno(), first, last - first, fd, to)
            done += _plain_copy(stream.fileno(), first + done, last - first - done, fd, to + done)
            if done != last - first:
                copied_to = first + done
                break
    if copied_to != end:
        raise ValueError(
            f"{source} ended at byte {copied_to} while bytes {start} to {end} were copied from it; it changed or is "
            "damaged: restore it and run again"
        )


def _data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where between two positions a file is not a hole."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a hole up to the end of the file
                raise
            return
        hole = os.lseek(fd, start, os.SEEK_HOLE)
        if start < end:
            yield start, min(hole, end)
        start = hole


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


def commit(file: Path) -> None:
    """Give what was written to `partial_of(file)` its name, after its bytes are on the disk."""
    sync(partial_of(file))
    os.replace(partial_of(file), file)


def write_text(file: Path, text: str) -> None:
    """Write a small file so that it is never seen in part."""
    partial_of(file).write_bytes(text.encode())
    commit(file)


@contextlib.contextmanager
def fresh_directory(target: Path) -> Iterator[Path]:
    """`<target>.partial`, empty, which gets its final name when the body ends, and is removed when it fails.

    Raises:
        ValueError: something is at `target` already.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; it is left as it is: choose another place or remove it")
    partial = partial_of(target)
    if partial.exists():  # a killed run left it
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(target.parent)
