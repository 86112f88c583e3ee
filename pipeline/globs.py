"""Globs over relative POSIX names: of the files below a folder, of an archive's members, of a repository's files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from wcmatch import glob

_FLAGS = glob.GLOBSTAR | glob.DOTGLOB | glob.FORCEUNIX | glob.CASE


def matches(name: str, include: Iterable[str], exclude: Iterable[str] = ()) -> bool:
    """Whether some `include` matches the whole name and no `exclude` does.

    `*`, `?` and `[...]` stay within one folder, `**` as a whole part of a path is any number of folders.
    """
    return any(_compiled(one).match(name) for one in include) and not any(_compiled(one).match(name) for one in exclude)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    return glob.compile(pattern, flags=_FLAGS)
