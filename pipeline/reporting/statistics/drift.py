"""How far a model moved from its base, with intervals over the texts on which both were compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.records.items import Items
from pipeline.reporting.statistics.differences import Difference

ALL = "all"
"""Of a benchmark's categories: all of them together."""


def drift_of(items: Items, differ: Callable[..., Difference]) -> dict[str, Difference]:
    """How far a model is from its base on every category: against the base's own items, which are all 0."""
    names = sorted({name for name in items.categories if name})
    found = {ALL: items} | {name: items.of(name) for name in names if len(names) > 1}
    return {
        name: differ(part, replace(part, numerators=np.zeros_like(part.numerators)), stream=name)
        for name, part in found.items()
    }
