"""The first rows of sources on this machine, looked at before any work is done."""

from __future__ import annotations

from itertools import islice
from typing import Any

from pipeline.data.corpus import Bad
from pipeline.data.sources.documents import LocalFiles
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Rejected, Unused

NUM_ROWS = 100
"""Of a source, at most."""


def check_first_rows(data: Any, locate: Locate, listing: Listing, where: str) -> None:
    """Refuse local sources of texts or conversations of which preparing would use no row.

    Where bad rows are skipped, reading ends at the first that can be used; where they are refused, all of the first
    rows must be of use. What a chat template makes of a conversation is not looked at. `where` is the key of the data
    in the config.

    Raises:
        ValueError: as preparing does: the source, what became of its rows, and the first of them.
    """
    for group in ("sources", "replay"):
        for name, source in getattr(data, group, {}).items():
            if isinstance(getattr(source, "origin", None), LocalFiles):
                _check(name, source.read(locate, listing), data.bad_rows, f"{where}.{group}.{name}")


def _check(name: str, items: Any, bad_rows: str, key: str) -> None:
    bad, num_used, num_seen = Bad(), 0, 0
    for item in islice(items, NUM_ROWS):
        num_seen += 1
        if isinstance(item, Rejected):
            bad.add(name, item)
        elif not isinstance(item, Unused):
            num_used += 1
        if num_used and bad_rows == "skip":
            return
    bad.check(name, num_used, bad_rows, is_whole=num_seen < NUM_ROWS, key=key)
