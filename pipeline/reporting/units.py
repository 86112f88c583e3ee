"""The unit in which a report shows each measure."""

from __future__ import annotations

from pipeline.records.gold import BITS_PER_BYTE
from pipeline.records.items import KL_NATS, Items
from pipeline.reporting.collect import Collection
from pipeline.reporting.tables.wording import Unit


def units_of(collection: Collection) -> dict[str, Unit]:
    """Benchmark -> unit, of every measure that a model was evaluated on or lacks the losses of right answers for."""
    items: dict[str, list[Items]] = {}
    for variant in collection.variants:
        for row in variant.rows:
            for name, found in row.evaluations.items():
                items.setdefault(name, []).append(found)
    missing = {b.name: Unit("bits/byte", 1.0, 4, False) for b in collection.benchmarks if b.gold_of}
    return missing | {name: _unit(found) for name, found in items.items()}


def _unit(items: list[Items]) -> Unit:
    first = items[0]
    if first.metric == BITS_PER_BYTE:
        return Unit("bits/byte", 1.0, 4, first.higher_is_better)
    if first.metric == KL_NATS:
        return Unit("nats/token", 1.0, 4, first.higher_is_better)
    if all(found.is_share for found in items):
        return Unit("%", 100.0, 1, True)
    return Unit(first.metric, 1.0, 3, first.higher_is_better)
