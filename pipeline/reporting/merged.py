"""Models that several variants share, each once: but apart where they were measured differently."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.reporting.collect import Collection, Model, Variant

Key = tuple[str, Path, Path | None]
"""A row's name, its model and the model that it is compared with."""


def merged_rows(collection: Collection) -> list[tuple[Model, list[Variant]]]:
    """Rows with the variants that share them: same name, model and reference, and measured alike.

    What was measured of them is united. Where two variants have different evaluations of one benchmark, such as by
    another limit, each keeps its own row, and what one of them measured is never told of the other.
    """
    rows = [(row, variant) for variant in collection.variants for row in variant.rows]
    seen: dict[Key, dict[str, set[Path]]] = {}
    for row, variant in rows:
        places = seen.setdefault(_key(row, variant), {})
        for benchmark, directory in _evaluations(row, variant).items():
            places.setdefault(benchmark, set()).add(directory)
    merged: dict[Hashable, tuple[Model, list[Variant]]] = {}
    for row, variant in rows:
        own = _evaluations(row, variant)
        contested = [(name, own.get(name)) for name, places in seen[_key(row, variant)].items() if len(places) > 1]
        key = (*_key(row, variant), *contested)
        known, variants = merged.get(key, (row, []))
        merged[key] = (_united(known, row), [*variants, variant])
    return list(merged.values())


def _key(row: Model, variant: Variant) -> Key:
    reference = variant.reference_of(row)
    return row.name, row.model, reference.model if reference else None


def _evaluations(row: Model, variant: Variant) -> Mapping[str, Path]:
    """Directories of a row's evaluations, and of those that its reference has of the same benchmarks."""
    reference = variant.reference_of(row)
    theirs = reference.directories if reference else {}
    of_reference = {f"{name} of {row.reference}": place for name, place in theirs.items() if name in row.directories}
    return {**row.directories, **of_reference}


def _united(known: Model, row: Model) -> Model:
    return replace(
        known,
        evaluations={**row.evaluations, **known.evaluations},
        diagnoses={**row.diagnoses, **known.diagnoses},
        notes={**row.notes, **known.notes},
        directories={**row.directories, **known.directories},
        with_gold=row.with_gold | known.with_gold,
        taken_over=row.taken_over | known.taken_over,
        written={**row.written, **known.written},
    )
