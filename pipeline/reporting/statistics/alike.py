"""Which evaluations answered the same items: only these are compared item by item, pooled or drawn together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from pipeline.records.items import Items, Names


def answered(items: Items) -> str:
    """Equal for evaluations that `paired_columns` can pair: of the same items, in any order, by the same metric."""
    return _digest(items.metric, items.higher_is_better, items.ids, items.hashes)


def are_alike(found: Iterable[Items]) -> bool:
    """Whether all of these answered the same items by the same metric."""
    return len(set(map(answered, found))) < 2


@lru_cache(maxsize=4096)
def _digest(metric: str, higher_is_better: bool, ids: Names, hashes: Names) -> str:
    pairs = sorted(zip(ids, hashes, strict=True))
    return hashlib.sha256(repr((metric, higher_is_better, pairs)).encode()).hexdigest()
