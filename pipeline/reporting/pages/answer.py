"""The report's first sentences: what was learned and what it cost, with intervals, and what limits all of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from pipeline.reporting.axes import Axis, axes
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.pages.verdict import domain_details, verdicts
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.tables.labels import split_overrides
from pipeline.reporting.tables.wording import estimate, interval, listing, number

BITS = "bits per byte"
LEARNED = {
    "better": "learned the domain, {}",
    "within": "cannot be told from the base on the domain, {}",
    "worse": "got worse on the domain, {}",
    "identical": "is unchanged on the domain, {}",
}
MAX_TOLD = 3
"""Variants, or sets of items, that one sentence can tell of."""
RANDOM_BASE = "The base has random weights: this shows the wiring, and judges no claim."


def answer(comparison: Comparison) -> str:
    """What became of the model that each variant ends with; the first finding of the verdict where none was trained.

    Of more variants than a sentence holds: the first, the one that learned most and the one that cost least.
    """
    if not comparison.benchmarks:
        return "Nothing was measured, so there is nothing to compare; name measures, such as benchmark=[domain,drift]."
    axis = next(iter(axes(comparison)), None)
    lines = [comparison.last_line(variant) for variant in comparison.collection.variants]
    ends = list({line.label: line for line in lines if line and line.gains and line.gains.domain}.values())
    if not ends:
        by_others = {line.name: told for line in lines if line and (told := domain_details(comparison, line))}
        if by_others:
            return (
                "; ".join(f"The {name} model changed on the domain by {told}" for name, told in by_others.items()) + "."
            )
        first = verdicts(comparison)[0].findings[0]
        return f"{first.question} {first.text}"
    first_sentence = of_model(comparison, ends[0], axis)
    others = _extremes(comparison, ends, axis) if len(ends) > MAX_TOLD else dict.fromkeys(range(1, len(ends)), "")
    return (
        "; ".join(
            [first_sentence, *(what + _short(comparison, ends[i], axis, ends[0].name) for i, what in others.items())]
        )
        + "."
    )


def cautions(comparison: Comparison) -> list[str]:
    """What must be known before any number is believed: a sentence each, that stand below the first."""
    found = [RANDOM_BASE] if comparison.collection.has_random_base else []
    return found + ([text] if (text := _different_items(comparison)) else [])


def _different_items(comparison: Comparison) -> str:
    """Which measures were taken on different items in different variants, and what to change; "" for none."""
    told, settings = [], []
    for b in comparison.benchmarks:
        sets = comparison.by_items(b.name)
        variants = {key: {name for line in lines for name in line.variants} for key, lines in sets.items()}
        if b.gold_of or len({frozenset(names) for names in variants.values()}) < 2:
            continue
        sizes = {key: lines[0].scores[b.name].n for key, lines in sets.items()}
        where = [f"{sizes[key]:,} in {_named(comparison, names)}" for key, names in variants.items()]
        if len(sets) > MAX_TOLD:
            where = [f"{len(sets)} sets of {min(sizes.values()):,} to {max(sizes.values()):,}"]
        told.append(f"{b.title} ({'; '.join(where)})")
        settings += _settings(comparison, b.name)
    if not told:
        return ""
    same = f"the same {listing(settings)}" if settings else "the same items (of a drift: from the same base)"
    return (
        f"Runs were measured on different items by {listing(told)}, so these numbers are compared within a run and not "
        f"between runs; to compare them, run again with {same}."
    )


def _named(comparison: Comparison, variants: Collection[str]) -> str:
    return " / ".join(label for name, label in comparison.labels.items() if name in variants)


def _settings(comparison: Comparison, benchmark: str) -> list[str]:
    """The settings of a benchmark that differ between variants, by their overrides."""
    prefix = f"benchmark.{benchmark}."
    each = [split_overrides(name) for name in comparison.labels]
    differing = {override for own in each for override in own if not all(override in other for other in each)}
    keys = {override.partition("=")[0].lstrip("+") for override in differing}
    return sorted(key for key in keys if key.startswith(prefix))


def of_model(comparison: Comparison, line: ModelResult, axis: Axis | None = None) -> str:
    """What one model learned and what it cost, without a full stop at its end."""
    if line.gains is None or line.gains.domain is None:
        return f"What the {line.name} model learned was not measured"
    domain, axis = line.gains.domain, axis or next(iter(axes(comparison)), None)
    who = (
        f"The {line.name} model"
        if len(comparison.labels) == 1
        else f"{_variants(comparison, line)}: the {line.name} model"
    )
    learned = f"{who} {LEARNED[domain.mark].format(estimate(domain, 4, BITS))}"
    cost = axis.of(line) if axis else None
    if axis is None or cost is None:
        return f"{learned}; what that cost was not measured"
    return f"{learned}, and {axis.sentence.format(estimate(cost, axis.digits, axis.unit, signed=axis.signed))}"


def _short(comparison: Comparison, line: ModelResult, axis: Axis | None, told: str) -> str:
    """The same in numbers; its name where that is not the one that was `told` of."""
    domain, cost = _gain(line), axis.of(line) if axis else None
    who = "" if line.name == told else f"the {line.name} model "
    learned = f"{_variants(comparison, line)}: {who}{number(domain.value, 4, signed=True)} {interval(domain, 4)}"
    if axis is None or cost is None:
        return learned
    bounds = interval(cost, axis.digits)
    value = number(cost.value, axis.digits, signed=axis.signed)
    return f"{learned} and {value} {bounds if axis.signed else bounds.replace('+', '')}"


def _extremes(comparison: Comparison, ends: Sequence[ModelResult], axis: Axis | None) -> dict[int, str]:
    """Numbers of the models that learned most and that cost least, with these words; the first is told anyway. None
    where they were measured on different items."""
    if any(len(comparison.by_items(b.name)) > 1 for b in comparison.benchmarks):
        return {}
    gains = [_gain(line).value for line in ends]
    named = {gains.index(max(gains)): ["most learned"]}
    costs = [cost.value * cost.sign if axis and (cost := axis.of(line)) else -math.inf for line in ends]
    if max(costs) > -math.inf:
        named.setdefault(costs.index(max(costs)), []).append(f"best in {axis.noun if axis else ''}")
    named.pop(0, None)
    return {i: f"{' and '.join(words)} of {len(ends)}, " for i, words in named.items()}


def _variants(comparison: Comparison, line: ModelResult) -> str:
    return " / ".join(comparison.labels[name] for name in line.variants)


def _gain(line: ModelResult) -> Difference:
    assert line.gains is not None and line.gains.domain is not None
    return line.gains.domain
