"""The page on which a person looks at single items: prompt, answers and what is right, model by model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pipeline.records.items import ItemText, read_texts
from pipeline.reporting.collect import Benchmark
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.statistics.intervals import Items
from pipeline.reporting.tables.wording import Unit

TEMPLATE = Path(__file__).with_name("items.html")
# Inside a script element the browser looks for its end before anything else; these cannot end it.
_HARMLESS = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


Key = tuple[str, str]
"""An item's id and the hash of its content: one id may have other content in another run."""


@dataclass(frozen=True)
class _Answered:
    """A model's items on a benchmark: the value of each, nan where nothing was judged, and its category."""

    line: ModelResult
    values: dict[Key, float]
    categories: dict[Key, str]

    @classmethod
    def of(cls, line: ModelResult, items: Items) -> _Answered:
        with np.errstate(invalid="ignore", divide="ignore"):
            values = items.numerators / items.denominators
        categories = items.categories or ("",) * len(items.ids)
        keys = list(zip(items.ids, items.hashes, strict=True))
        return cls(line, dict(zip(keys, values.tolist(), strict=True)), dict(zip(keys, categories, strict=True)))

    def texts(self, benchmark: str, keys: Sequence[Key]) -> dict[Key, ItemText]:
        """What people read of those items that this model answered."""
        own = [key for key in keys if key in self.values]
        found = read_texts(self.line.row.directories[benchmark], [name for name, _ in own])
        return {key: found[key[0]] for key in own if key[0] in found}


def items_html(comparison: Comparison, *, per_benchmark: int, characters: int) -> str:
    """The whole page, or "" if it would be empty. Nothing is loaded from elsewhere; all text is shown as text.

    Args:
        per_benchmark: items of each benchmark to show, those on which some model differs from its base first, then in
            the order of their content hashes.
        characters: what is longer is cut.
    """
    benchmarks = [b for b in comparison.benchmarks if per_benchmark and not b.gold_of]
    shown = [_benchmark(comparison, b, per_benchmark, characters) for b in benchmarks]
    shown = [benchmark for benchmark in shown if benchmark["items"]]
    if not shown:
        return ""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(name=comparison.collection.name, data=embedded({"benchmarks": shown}))


def embedded(values: Any) -> str:
    """JSON that may stand inside a script element of a page."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_HARMLESS)


def _benchmark(comparison: Comparison, benchmark: Benchmark, limit: int, characters: int) -> dict[str, Any]:
    answered = [
        _Answered.of(line, line.row.evaluations[benchmark.name])
        for line in comparison.lines
        if benchmark.name in line.row.evaluations
    ]
    bases = [_base_of(comparison, one, answered) for one in answered]
    keys = _chosen(answered, bases)
    unit = comparison.units[benchmark.name]
    texts = [one.texts(benchmark.name, keys[:limit]) for one in answered]
    items = [_item(key, answered, bases, texts, characters) for key in keys[:limit]]
    return {
        "title": benchmark.title,
        "note": benchmark.note,
        "unit": unit.name,
        "higher": unit.higher_is_better,
        "digits": _digits(unit),
        "scale": unit.scale,
        "models": [one.line.label for one in answered],
        "bases": [None if base is None else answered.index(base) for base in bases],
        "total": len(keys),
        "changed": sum(_is_changed(key, answered, bases) for key in keys),
        "items": [item for item in items if item["prompt"] or any(item["answers"])],
    }


def _base_of(comparison: Comparison, one: _Answered, answered: Sequence[_Answered]) -> _Answered | None:
    """The model that it is compared with, if that answered the benchmark too."""
    base = comparison.reference(one.line)
    return next((other for other in answered if other.line is base), None)


def _chosen(answered: Sequence[_Answered], bases: Sequence[_Answered | None]) -> list[Key]:
    """All items, those that changed first, each part in the order of the hashes."""
    keys = {key for one in answered for key in one.values}
    return sorted(keys, key=lambda key: (not _is_changed(key, answered, bases), key[1], key[0]))


def _is_changed(key: Key, answered: Sequence[_Answered], bases: Sequence[_Answered | None]) -> bool:
    pairs = ((one.values.get(key), base.values.get(key)) for one, base in zip(answered, bases, strict=True) if base)
    return any(own != other and not (own != own and other != other) for own, other in pairs)


def _item(
    key: Key,
    answered: Sequence[_Answered],
    bases: Sequence[_Answered | None],
    texts: Sequence[dict[Key, ItemText]],
    characters: int,
) -> dict[str, Any]:
    nothing = ItemText("", "", "")
    found = [one.get(key, nothing) for one in texts]
    golds = [_cut(text.gold, characters) for text in found]
    values = [one.values.get(key) for one in answered]
    return {
        "id": key[0],
        "category": next((one.categories[key] for one in answered if key in one.categories), ""),
        "changed": _is_changed(key, answered, bases),
        "prompt": _cut(next((text.prompt for text in found if text.prompt), ""), characters),
        "golds": golds[:1] if len(set(golds)) == 1 else golds,
        "answers": [_cut(text.answer, characters) for text in found],
        "values": [None if value is None or not np.isfinite(value) else round(value, 6) for value in values],
    }


def _cut(text: str, characters: int) -> str:
    """The head and the tail of a long text: a few-shot prompt has its question at the end."""
    if len(text) <= characters:
        return text
    head, tail = characters // 3, characters - characters // 3
    return f"{text[:head]}\n[… {len(text) - characters:,} characters …]\n{text[-tail:]}"


def _digits(unit: Unit) -> int:
    return 0 if unit.name == "%" else unit.digits
