"""Methods at equal gain on the domain: what each trained, over its learning rates, and how far it drifted for it.

A method is what a training did, told by its stage's parameters and what it started from; its points differ in the
learning rate alone. Mixing the same models is one too; its points differ in t.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from pipeline.records.items import KL_NATS, Floats
from pipeline.reporting.collect import read_manifest
from pipeline.reporting.compare import BITS_PER_BYTE, Comparison, ModelResult
from pipeline.reporting.statistics.alike import answered
from pipeline.reporting.statistics.drift import ALL
from pipeline.reporting.statistics.frontier import Level, Point, envelope, levels, shared_draws

SWEPT = {"strategy": ("lr",), "method": ("method", "t")}
"""Section that names a stage's class -> where in its params the number is by which a method's points differ."""
WRITTEN = {"Lora": "LoRA", "Full": "full fine-tuning"}
"""Names of strategies that are not their class's words."""


@dataclass(frozen=True)
class Method:
    """A method and its models, by their learning rates, or what else is `swept` ("t" of a mix)."""

    label: str
    swept: str
    rates: tuple[float, ...]
    lines: tuple[ModelResult, ...]
    points: tuple[Point, ...]

    @property
    def curve(self) -> list[Point]:
        """See `envelope`."""
        return envelope(self.points)

    @property
    def largest(self) -> Point:
        """The point of the largest gain."""
        return max(self.points, key=lambda one: one.gain)

    @property
    def rate_texts(self) -> tuple[str, ...]:
        """Each point's learning rate, as people write it, or t=0.5."""
        return tuple(rate_text(r) if self.swept == "lr" else f"{self.swept}={r:g}" for r in self.rates)

    def text_of(self, point: Point) -> str:
        """The same of one of its points."""
        return self.rate_texts[self.points.index(point)]


@dataclass(frozen=True)
class Frontier:
    """Methods that started from one base, over drift on all texts or on one kind of them.

    Attributes:
        kind: of the texts; `all`.
        levels: the methods at equal gains.
        num_items: texts that drift was measured on.
        apart: models of further methods, which answered other items or came from another base.
    """

    kind: str
    base: str
    methods: tuple[Method, ...]
    levels: tuple[Level, ...]
    num_items: int
    apart: tuple[str, ...] = ()


def rate_text(rate: float) -> str:
    """2e-4, as people write a learning rate."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def frontiers(
    comparison: Comparison,
    seed: int,
    group: Mapping[str, str | None] | None = None,
    lines: Sequence[ModelResult] | None = None,
) -> list[Frontier]:
    """Over all texts, then over each kind; none where fewer than two methods have several learning rates.

    Args:
        seed: of the draws.
        group: the methods to compare, by the name that their models have in the lineage before the learning rate, and
            what to call each (null leaves it out); None: all.
        lines: models whose methods are compared, None: all.
    """
    named, apart = _methods(comparison, lines)
    if group is not None:
        named = _of_group(named, group)
    if len(named) < 2:
        return []
    rated_lines = [line for _, rated in named.values() for _, line in rated]
    gain, gains = _gains(comparison, rated_lines, seed)
    first = rated_lines[0].row.evaluations[_drift_measure(comparison)]
    kinds = sorted({name for name in first.categories if name})
    found = []
    for kind in (ALL, *(kinds if len(kinds) > 1 else ())):
        drift, drifts, n = _drifts(comparison, rated_lines, kind, seed)
        points = {id(one): Point(gain[i], drift[i], gains[:, i], drifts[:, i]) for i, one in enumerate(rated_lines)}
        methods = tuple(_method(label, swept, rated, points) for label, (swept, rated) in named.items())
        compared = levels({one.label: one.curve for one in methods}, confidence=comparison.confidence, num_items=n)
        found.append(Frontier(kind, str(rated_lines[0].row.reference), methods, tuple(compared), n, apart))
    return found


def _method(label: str, swept: str, rated: Sequence[tuple[float, ModelResult]], points: Mapping[int, Point]) -> Method:
    rates, lines = zip(*rated, strict=True)
    return Method(label, swept, rates, lines, tuple(points[id(line)] for line in lines))


def _methods(
    comparison: Comparison, lines: Sequence[ModelResult] | None
) -> tuple[dict[str, tuple[str, list[tuple[float, ModelResult]]]], tuple[str, ...]]:
    """label -> what is swept, its values and models, of the methods that have several, all compared with one base.

    Then the models of such methods that cannot be compared with these.
    """
    if not _domain_measures(comparison) or _drift_measure(comparison) == "":
        return {}, ()
    found: dict[str, list[tuple[float, ModelResult]]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    own = {line.label for line in lines or comparison.lines}
    measures = (*_domain_measures(comparison), _drift_measure(comparison))
    for line in sorted(comparison.lines, key=lambda line: line.label not in own):
        base = comparison.reference(line)
        recipe = _recipe(line) if base is not None and _is_measured(comparison, line, base) else None
        if base is None or recipe is None or not isinstance(rate := recipe.pop("value"), float | int):
            continue
        items = [answered(line.row.evaluations[name]) for name in measures]
        key = json.dumps([recipe, base.row.fingerprint, items], sort_keys=True)
        recipes[key] = recipe
        found.setdefault(key, []).append((float(rate), line))
    each = {key: sorted({rate: line for rate, line in reversed(rated)}.items()) for key, rated in found.items()}
    several = {key: rated for key, rated in each.items() if len(rated) > 1}
    if lines is not None:
        several = {key: rated for key, rated in several.items() if own & {line.label for _, line in rated}}
    shared = {key: json.loads(key)[1:] for key in several}  # one base, the same items
    together = {key: rated for key, rated in several.items() if shared[key] == next(iter(shared.values()))}
    apart = tuple(line.label for key, rated in several.items() if key not in together for _, line in rated)
    stems = [stem_of([line.name for _, line in rated]) for rated in together.values()]
    labels = _labels([recipes[key] for key in together], stems)
    return {label: (recipes[key]["swept"], together[key]) for label, key in zip(labels, together, strict=True)}, apart


def _of_group(
    named: Mapping[str, tuple[str, list[tuple[float, ModelResult]]]], group: Mapping[str, str | None]
) -> dict[str, tuple[str, list[tuple[float, ModelResult]]]]:
    found = {stem_of([line.name for _, line in rated]): (swept, rated) for swept, rated in named.values()}
    return {label: found[stem] for stem, label in group.items() if label is not None and stem in found}


def stem_of(names: Sequence[str]) -> str:
    """What the names of a method's models have in common: of lora-1e-4 and lora-2e-4, lora."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike).rpartition("-")[0]


def _recipe(line: ModelResult) -> dict[str, Any] | None:
    """What made a model: parameters and the fingerprints of what was read, beside what is `swept`, and its `value`."""
    manifest = read_manifest(line.row.model)
    inputs = {role: one["fingerprint"] for role, one in (manifest.get("inputs") or {}).items()}
    params = copy.deepcopy(manifest.get("params") or {})
    path = next((path for section, path in SWEPT.items() if section in params), None)
    if path is None:
        return None
    *sections, swept = path
    value = reduce(lambda inner, key: inner[key], sections, params).pop(swept, None)
    return {"params": params, "inputs": inputs, "swept": swept, "value": value}


def _is_measured(comparison: Comparison, line: ModelResult, base: ModelResult) -> bool:
    names = _domain_measures(comparison)
    return _drift_measure(comparison) in line.row.evaluations and all(
        name in one.row.evaluations for name in names for one in (line, base)
    )


def _domain_measures(comparison: Comparison) -> list[str]:
    domain = [b.name for b in comparison.benchmarks if b.group == "domain" and not b.gold_of]
    measured = {n: items for line in comparison.lines for n, items in line.row.evaluations.items() if n in domain}
    return [name for name in domain if measured[name].metric == BITS_PER_BYTE]


def _drift_measure(comparison: Comparison) -> str:
    """The first measure of drift; "" for none."""
    found = (n for line in comparison.lines for n, items in line.row.evaluations.items() if items.metric == KL_NATS)
    return next(found, "")


def _gains(comparison: Comparison, lines: Sequence[ModelResult], seed: int) -> tuple[Floats, Floats]:
    """(M,) and (B, M): bits per byte that the base has more, the mean over the measures of the domain."""
    base = comparison.reference(lines[0])
    assert base is not None
    parts = []
    for name in _domain_measures(comparison):
        models = [one.row.evaluations[name] for one in (base, *lines)]
        value, draws = shared_draws(models, num_bootstrap=comparison.num_bootstrap, seed=seed, stream=name)
        parts.append((value[0] - value[1:], draws[:, :1] - draws[:, 1:]))
    return np.mean([value for value, _ in parts], axis=0), np.mean([draws for _, draws in parts], axis=0)


def _drifts(comparison: Comparison, lines: Sequence[ModelResult], kind: str, seed: int) -> tuple[Floats, Floats, int]:
    name = _drift_measure(comparison)
    models = [line.row.evaluations[name] for line in lines]
    if kind != ALL:
        models = [one.of(kind) for one in models]
    found = shared_draws(models, num_bootstrap=comparison.num_bootstrap, seed=seed, stream=f"{name} {kind}")
    return *found, len(models[0].ids)


def _labels(recipes: Sequence[Mapping[str, Any]], stems: Sequence[str]) -> list[str]:
    """What each trains; where several train the same, the least of settings, models' names and numbers beside it that
    tells them apart."""
    flat = [_flat(recipe["params"]) for recipe in recipes]
    names = [_written(one.get("strategy._target_") or one.get("method._target_", "")) for one in flat]
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name, []).append(i)
    labels: dict[int, str] = {}
    for name, own in groups.items():
        labels |= zip(own, _told_apart(name, [flat[i] for i in own], [stems[i] for i in own]), strict=True)
    return [labels[i] for i in range(len(names))]


def _told_apart(name: str, flat: Sequence[Mapping[str, Any]], stems: Sequence[str]) -> list[str]:
    """A label for each of the methods that train what `name` says."""
    keys = [
        key for key in dict.fromkeys(key for one in flat for key in one) if len({str(o.get(key)) for o in flat}) > 1
    ]
    by_settings = [", ".join([name, *(f"{key.rpartition('.')[2]}={o[key]}" for key in keys if key in o)]) for o in flat]
    by_name = [f"{name} ({stem})" if stem and stem.replace("_", " ") != name else name for stem in stems]
    by_both = [f"{label} ({stem})" for label, stem in zip(by_settings, stems, strict=True)]
    numbered = [f"{label} ({i + 1})" for i, label in enumerate(by_settings)]
    tried = ([name] * len(flat), by_settings, by_name, by_both)
    return next((labels for labels in tried if len({*labels}) == len(flat)), numbered)


def _written(target: str) -> str:
    name = target.rpartition(".")[2]
    return WRITTEN.get(name, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower())


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found
