"""How sources are found on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

Locate = Callable[[dict], Path]
"""Turns a source mapping ({kind: package|local, ...}) into a path on disk."""
Listing = Callable[[dict], Sequence[str]]
"""Turns a local source mapping into the names, relative to the located directory, of the files it means, in order."""
