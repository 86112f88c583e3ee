"""How sources are found on disk, and globs over the relative POSIX names of an archive's members."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

Locate = Callable[[dict], Path]
"""Turns a source mapping ({kind: package|local, ...}) into a path on disk."""
Listing = Callable[[dict], Sequence[str]]
"""Turns a local source mapping into the names, relative to the located directory, of the files it means, in order."""

_TOKEN = re.compile(r"(?P<tree>\*\*/)|(?P<rest>\*\*)|(?P<star>\*)|(?P<one>\?)|(?P<set>\[!?[^\]]+\])|(?P<char>.)", re.S)


def _set(text: str) -> str:
    inner = text[1:-1].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
    return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = []
    for match in _TOKEN.finditer(pattern):
        text = match.group()
        parts.append(
            {
                "tree": "(?:[^/]+/)*",
                "rest": ".*",
                "star": "[^/]*",
                "one": "[^/]",
                "set": _set(text),
                "char": re.escape(text),
            }[str(match.lastgroup)]
        )
    return re.compile("".join(parts), re.S)


def matches(name: str, include: Iterable[str], exclude: Iterable[str] = ()) -> bool:
    """Whether a relative POSIX name is meant: matched by some `include` and by no `exclude`.

    `*` and `?` stay within one folder, `**/` is any number of folders, a trailing `**` is everything below.
    """
    return any(_compiled(p).fullmatch(name) for p in include) and not any(_compiled(p).fullmatch(name) for p in exclude)
