"""Read members of a wheel, zip or tar without trusting it: nothing is imported, executed or written elsewhere."""

from __future__ import annotations

import glob
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.globs import matches

MAX_MEMBER_BYTES = 4 << 30
MAX_TOTAL_BYTES = 64 << 30
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file inside an archive. `size` is the unpacked size in bytes, as declared; `link` marks a link or device."""

    name: str
    size: int
    link: bool


def _check_name(archive: Path, name: str) -> str:
    parts = PurePosixPath(name).parts
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in parts or ":" in (parts or ("",))[0]:
        raise ValueError(f"{archive.name} holds a member named {name!r}, which leads out of the archive; refused")
    return name


def _zip_members(path: Path, handle: zipfile.ZipFile) -> Iterator[Member]:
    for info in handle.infolist():
        name = _check_name(path, info.filename)
        mode = info.external_attr >> 16
        special = bool(stat.S_IFMT(mode)) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        if not info.is_dir():
            yield Member(name, info.file_size, special or bool(info.flag_bits & 0x1))


def _tar_members(path: Path, handle: tarfile.TarFile) -> Iterator[Member]:
    for info in handle:
        name = _check_name(path, info.name)
        if not info.isdir():
            yield Member(name, info.size, not info.isreg())


class Archive:
    """An open archive. Use `open_archive`."""

    def __init__(self, path: Path, handle: zipfile.ZipFile | tarfile.TarFile) -> None:
        self.path, self._handle = path, handle
        members = _zip_members(path, handle) if isinstance(handle, zipfile.ZipFile) else _tar_members(path, handle)
        self._members: dict[str, Member] = {}
        for member in members:
            if member.name in self._members:
                raise ValueError(f"{path.name} holds two members named {member.name!r}; refused")
            self._members[member.name] = member

    def select(self, include: Iterable[str], exclude: Iterable[str] = ()) -> list[Member]:
        """Members whose names match, by name. Raises ValueError for a link or an absurd size among them."""
        include, exclude = list(include), list(exclude)
        chosen = [self._members[name] for name in sorted(self._members) if matches(name, include, exclude)]
        for member in chosen:
            if member.link:
                raise ValueError(f"{self.path.name}: {member.name!r} is a link, a device or encrypted; refused")
            if member.size > MAX_MEMBER_BYTES:
                raise ValueError(f"{self.path.name}: {member.name!r} unpacks to {member.size:,} bytes; refused")
        total = sum(member.size for member in chosen)
        if total > MAX_TOTAL_BYTES:
            raise ValueError(f"{self.path.name}: {len(chosen)} members unpack to {total:,} bytes; refused")
        return chosen

    def open(self, member: Member) -> IO[bytes]:
        """The member as a stream of bytes."""
        if isinstance(self._handle, zipfile.ZipFile):
            return self._handle.open(member.name)
        stream = self._handle.extractfile(member.name)
        if stream is None:
            raise ValueError(f"{self.path.name}: {member.name!r} is not a file")
        return stream

    def blocks(self, member: Member) -> Iterator[bytes]:
        """The member's bytes in blocks. Raises ValueError as soon as it is longer than it declared."""
        read = 0
        with self.open(member) as stream:
            while block := stream.read(_BLOCK_BYTES):
                read += len(block)
                if read > member.size:
                    raise ValueError(f"{self.path.name}: {member.name!r} is longer than the {member.size:,} declared")
                yield block

    def read(self, member: Member) -> bytes:
        """All the member's bytes."""
        return b"".join(self.blocks(member))


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a wheel, zip or tar (plain, gz, bz2, xz).

    Raises ValueError for another format, and for a member name that is absolute, climbs out or occurs twice.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as handle:
            yield Archive(path, handle)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            yield Archive(path, tar)
    else:
        raise ValueError(f"{path} is neither a zip (wheel) nor a tar archive")


def read_members(path: Path, include: Iterable[str], exclude: Iterable[str] = ()) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the matching members, sorted by name. Raises ValueError if none matches."""
    include = list(include)
    with open_archive(path) as archive:
        chosen = archive.select(include, exclude)
        if not chosen:
            raise ValueError(f"{path.name} holds no member that matches {include}; look with `python -m zipfile -l`")
        for member in chosen:
            yield member.name, archive.read(member)


def extract_member(path: Path, name: str, directory: Path) -> Path:
    """Write the one member called `name` below `directory` and return the file.

    Raises ValueError if there is no such member or it is unsafe.
    """
    target = directory / name
    with open_archive(path) as archive:
        chosen = archive.select([glob.escape(name)])
        if not chosen:
            raise ValueError(f"{path.name} holds no member called {name}; look with `python -m zipfile -l`")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            stream.writelines(archive.blocks(chosen[0]))
    return target
