"""Every model of a report against the base of its variant: scores, differences and the gains drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from pipeline.records.gold import BITS_PER_BYTE
from pipeline.records.items import KL_NATS
from pipeline.reporting.collect import Benchmark, Collection, Model, Variant
from pipeline.reporting.merged import merged_rows
from pipeline.reporting.statistics.alike import answered, are_alike
from pipeline.reporting.statistics.differences import Difference, beyond_general_shift, combine, mean_gain
from pipeline.reporting.statistics.drift import drift_of
from pipeline.reporting.statistics.intervals import Items, Score, inverse_stderrs, paired_difference, score
from pipeline.reporting.statistics.permutation import holm, permutation_test
from pipeline.reporting.tables.labels import variant_labels
from pipeline.reporting.tables.wording import Unit
from pipeline.reporting.units import units_of

KEPT_GROUPS = ("general", "retention")


@dataclass(frozen=True)
class Gains:
    """What a model gained over a reference; positive is better, None where the report lacks the measures.

    Attributes:
        domain, general: mean gain in bits per byte over the group's bits-per-byte measures.
        beyond: domain minus general.
        retention: mean change over what the base could do already, the general and retention measures: in percentage
            points over those that are shares (accuracies), or in standard errors over all if none is one.
        num_retention: how many measures that is.
        gold: mean change of the loss of right answers, in bits per byte, over those of the same groups that have one.
        num_gold: how many tasks that is.
    """

    domain: Difference | None
    general: Difference | None
    beyond: Difference | None
    retention: Difference | None
    retention_unit: str
    num_retention: int
    gold: Difference | None = None
    num_gold: int = 0


class Kept(NamedTuple):
    """How much of what the base could do a model kept, as one number; positive is better."""

    change: Difference
    unit: str
    digits: int
    what: str  # it is a mean over


@dataclass(frozen=True)
class ModelResult:
    """One model of the report: a row of one variant, or of several variants that share it.

    `differences` is empty for a model without a reference, such as a base; `gains` is then None. `p_values` are those
    of a paired permutation test of each difference. `drift`: benchmark -> category (`all` first) -> divergence from the
    base, of the benchmarks that measure one.
    """

    label: str
    name: str
    variants: tuple[str, ...]
    row: Model
    scores: dict[str, Score]
    differences: dict[str, Difference]
    gains: Gains | None
    p_values: dict[str, float] = field(default_factory=dict)
    drift: dict[str, dict[str, Difference]] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """The last model of one variant against the last model of the reference variant, item by item.

    Attributes:
        drift: positive: the variant's model stayed closer to the base.
        apart: benchmarks that both were measured by, on different items, which are not compared.
    """

    variant: str
    label: str
    reference: str
    reference_label: str
    gains: Gains
    drift: Difference | None = None
    apart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    collection: Collection
    benchmarks: tuple[Benchmark, ...]  # those that at least one model was evaluated on
    units: dict[str, Unit]
    labels: dict[str, str]  # variant name -> short label
    lines: tuple[ModelResult, ...]
    baselines: tuple[Baseline, ...]
    confidence: float
    num_bootstrap: int
    power: float

    def line(self, variant: str, name: str) -> ModelResult | None:
        """The model of row `name` in a variant."""
        return next((line for line in self.lines if line.name == name and variant in line.variants), None)

    def reference(self, line: ModelResult) -> ModelResult | None:
        """The model that a line is compared with."""
        return None if line.row.reference is None else self.line(line.variants[0], line.row.reference)

    def trained_names(self) -> list[str]:
        """Names of the models that a training made, each once, in the order of the lineage."""
        return list(dict.fromkeys(line.name for line in self.lines if line.row.training is not None))

    def kept(self, line: ModelResult) -> list[Benchmark]:
        """The measures, of those a model shares with its base, of what the base could do already."""
        return [b for b in self.benchmarks if b.group in KEPT_GROUPS and b.name in line.differences]

    @property
    def kept_by_gold(self) -> bool:
        """Whether what was kept is read off the right answers' loss: every compared model has it, and it is finer."""
        gains = [line.gains for line in self.lines if line.gains is not None]
        return bool(gains) and all(one.gold is not None for one in gains)

    def kept_change(self, line: ModelResult) -> Kept | None:
        """How much a model kept: by the right answers' loss if every model has it, else by the mean over scores."""
        if (gains := line.gains) is None:
            return None
        if self.kept_by_gold and gains.gold is not None:
            return Kept(gains.gold, "bits/byte", 4, f"the gold answers of {_counted(gains.num_gold, 'task')}")
        if gains.retention is None:
            return None
        return Kept(gains.retention, gains.retention_unit, 2, _counted(gains.num_retention, "measure"))

    def corrected(self) -> dict[tuple[str, str], float]:
        """(line's label, benchmark) -> p-value adjusted for the number of all comparisons with a base (Holm)."""
        found = self._comparisons()
        adjusted = holm({key: line.p_values[name] for key, line, name in found})
        return {(line.label, name): adjusted[key] for key, line, name in found}

    @property
    def num_corrected(self) -> int:
        """For how many comparisons that is: one that several models' rows share, measured differently, counts once."""
        return len({key for key, _, _ in self._comparisons()})

    def _comparisons(self) -> list[tuple[Hashable, ModelResult, str]]:
        """What was compared with what, with the model and the benchmark."""
        measured = {b.name: b.gold_of or b.name for b in self.benchmarks}
        return [
            ((name, *(one.row.directories[measured[name]] for one in (line, self.reference(line)) if one)), line, name)
            for line in self.lines
            for name in line.p_values
            if not line.differences[name].identical
        ]

    def by_items(self, benchmark: str) -> dict[str, list[ModelResult]]:
        """The models that were measured by a benchmark, by the items that they answered; see `answered`."""
        found: dict[str, list[ModelResult]] = {}
        for line in self.lines:
            if benchmark in line.row.evaluations:
                found.setdefault(answered(line.row.evaluations[benchmark]), []).append(line)
        return found

    def last_line(self, variant: Variant) -> ModelResult | None:
        """The model a variant ends with, if that is compared with another."""
        last = variant.rows[-1]
        return None if last.reference is None else self.line(variant.name, last.name)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def compare(collection: Collection, *, confidence: float, num_bootstrap: int, seed: int, power: float) -> Comparison:
    """Compare all models with their references on the items both answered; `power` is that of detectable differences.

    Raises:
        ValueError: naming row and benchmark, if two models answered different items.
    """
    differ = partial(paired_difference, confidence=confidence, num_bootstrap=num_bootstrap, seed=seed)
    test = partial(permutation_test, num_draws=num_bootstrap, seed=seed)
    labels = variant_labels([variant.name for variant in collection.variants])
    units = units_of(collection)
    rows = merged_rows(collection)
    lines = [_line(row, variants, collection, labels, units, differ, test) for row, variants in rows]
    baselines = _baselines(collection, labels, units, differ)
    benchmarks = tuple(b for b in collection.benchmarks if b.name in units)
    return Comparison(collection, benchmarks, units, labels, tuple(lines), baselines, confidence, num_bootstrap, power)


def _line(
    row: Model,
    variants: list[Variant],
    collection: Collection,
    labels: dict[str, str],
    units: dict[str, Unit],
    differ: Callable[..., Difference],
    test: Callable[..., float],
) -> ModelResult:
    base_evaluations: dict[str, Items] = {}
    for variant in variants:
        reference = variant.reference_of(row)
        base_evaluations = {**(reference.evaluations if reference else {}), **base_evaluations}
    # The expansion compares logits, bit for bit, when it is written: that is more than equal answers could show.
    differ = partial(differ, same_model=row.is_exact)
    is_compared = row.reference is not None
    differences = _differences(row.name, row.evaluations, base_evaluations, differ) if is_compared else {}
    gains = _gains(differences, base_evaluations, collection, units) if is_compared else None
    names = tuple(variant.name for variant in variants)
    label = row.name
    if len(names) < len(collection.variants):
        label += " · " + " / ".join(labels[name] for name in names)
    scores = {name: score(items) for name, items in row.evaluations.items()}
    p_values = {name: test(row.evaluations[name], base_evaluations[name], stream=name) for name in differences}
    drift = {name: drift_of(items, differ) for name, items in row.evaluations.items() if items.metric == KL_NATS}
    return ModelResult(label, row.name, names, row, scores, differences, gains, p_values, drift)


def _differences(
    label: str, model: dict[str, Items], reference: dict[str, Items], differ: Callable[..., Difference]
) -> dict[str, Difference]:
    found = {}
    for name in model.keys() & reference.keys():
        try:
            found[name] = differ(model[name], reference[name], stream=name)
        except ValueError as error:
            raise ValueError(f"{label} against its reference on {name}: {error}") from error
    return found


def _gains(
    differences: dict[str, Difference],
    reference: dict[str, Items],
    collection: Collection,
    units: dict[str, Unit],
) -> Gains:
    def of_group(group: str, only_bits: bool) -> list[str]:
        own = [b for b in collection.benchmarks if b.group == group and not b.gold_of]
        named = [b.name for b in own if b.name in differences]
        return [name for name in named if not only_bits or reference[name].metric == BITS_PER_BYTE]

    any_difference = next(iter(differences.values()), None)
    confidence = any_difference.confidence if any_difference else 0.0
    domain = [differences[name] for name in of_group("domain", only_bits=True)]
    general = [differences[name] for name in of_group("general", only_bits=True)]
    kept = [name for group in KEPT_GROUPS for name in of_group(group, only_bits=False)]
    measured = [b.name for b in collection.benchmarks if b.group in KEPT_GROUPS and b.name in units and not b.gold_of]
    golds = [b.name for b in collection.benchmarks if b.group in KEPT_GROUPS and b.gold_of and b.name in differences]
    if any(units[name].name == "%" for name in measured):
        unit, weights = "percentage points", {name: 100.0 for name in kept if units[name].name == "%"}
    else:
        unit, weights = "standard errors of the base's score", inverse_stderrs({name: reference[name] for name in kept})
    terms = [(weight / len(weights), differences[name]) for name, weight in weights.items()]
    return Gains(
        domain=mean_gain(domain, confidence=confidence) if domain else None,
        general=mean_gain(general, confidence=confidence) if general else None,
        beyond=beyond_general_shift(domain, general, confidence=confidence) if domain and general else None,
        retention=combine(terms, confidence=confidence) if terms else None,
        retention_unit=unit,
        num_retention=len(terms),
        gold=mean_gain([differences[name] for name in golds], confidence=confidence) if golds else None,
        num_gold=len(golds),
    )


def _baselines(
    collection: Collection, labels: dict[str, str], units: dict[str, Unit], differ: Callable[..., Difference]
) -> tuple[Baseline, ...]:
    """Against the variant that is the method as it is configured, if there is one; without it each model has its base.

    Only where variants start from one model and end with one of the same name: else there are other causes.
    """
    first = next((variant for variant in collection.variants if variant.is_reference), None)
    start = first.reference_of(first.rows[-1]) if first is not None else None
    if first is None or start is None:
        return ()
    baselines = []
    for variant in collection.variants:
        reference = variant.reference_of(variant.rows[-1])
        if reference is None or reference.model != start.model or variant.rows[-1].name != first.rows[-1].name:
            continue
        if variant.rows[-1].model == first.rows[-1].model:
            continue
        model, other = variant.rows[-1].evaluations, first.rows[-1].evaluations
        apart = {name for name in model.keys() & other.keys() if not are_alike((model[name], other[name]))}
        model = {name: items for name, items in model.items() if name not in apart}
        differences = _differences(variant.rows[-1].name, model, other, differ)
        gains = _gains(differences, other, collection, units)
        drifts = [one for name, one in differences.items() if model[name].metric == KL_NATS]
        drift = mean_gain(drifts, confidence=drifts[0].confidence) if drifts else None
        named = (variant.name, labels[variant.name], first.name, labels[first.name])
        baselines.append(Baseline(*named, gains, drift, tuple(sorted(apart))))
    return tuple(baselines)
