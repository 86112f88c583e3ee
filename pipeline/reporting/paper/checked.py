"""Which of the paper's claims hold for the models of a report, which do not, and what cannot be told."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.reporting.collect import Variant
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.frontier import frontiers
from pipeline.reporting.paper.claims import AskedClaim, asked_claims
from pipeline.reporting.paper.contrasts import Contrast, Measure, at_equal_gain, contrast, measure_of
from pipeline.reporting.seeds import by_settings, is_seed
from pipeline.reporting.statistics.permutation import holm
from pipeline.reporting.tables.labels import split_overrides
from pipeline.reporting.tables.wording import Unit

HOLDS, FAILS, OPEN, UNKNOWN = "holds", "does not hold", "cannot tell", "not measured"
AT_GAIN = Measure((), Unit("nats/token", 1.0, 4, False), "drift at equal gain")

Runs = dict[str, list[ModelResult]]
"""Name -> its models in some variants, each once: several of different seeds, or of the values of its `each`."""


@dataclass(frozen=True)
class CheckedClaim:
    """A claim with what was measured for it.

    Attributes:
        variant: label of the variants whose models these are; "" where there is no choice.
        adjusted: p-values of the contrasts for the number of all contrasts of the report (Holm).
        missing: models that these variants have not.
        command: what makes the models.
        apart: methods that share no gain with that of the claim, where they are compared at equal gain.
    """

    asked: AskedClaim
    variant: str
    measure: Measure | None
    contrasts: tuple[Contrast, ...]
    missing: tuple[str, ...]
    command: str
    apart: tuple[str, ...] = ()
    adjusted: tuple[float, ...] = ()

    def verdict(self, alpha: float) -> str:
        """`HOLDS` where every contrast is shown to be as claimed, `FAILS` where one is shown not to be."""
        if not self.contrasts:
            return UNKNOWN
        shown = [one.is_more for one, p in zip(self.contrasts, self.adjusted, strict=True) if p <= alpha]
        return FAILS if False in shown else HOLDS if len(shown) == len(self.contrasts) else OPEN


def checked_claims(
    comparison: Comparison, asked: Mapping[str, Any], seed: int, labels: Mapping[str, str] | None = None
) -> list[CheckedClaim]:
    """Every claim that is asked for, for all variants that have most of its models.

    Args:
        labels: what to call methods of several rates, by their models' name; of others what they train is said.

    Raises:
        ValueError: models of a claim answered different items.
    """
    found = [one for claim in asked_claims(asked) for one in _checked(comparison, claim, seed, labels or {})]
    every = {(i, j): one.p for i, claim in enumerate(found) for j, one in enumerate(claim.contrasts)}
    adjusted = holm(every)
    return [
        replace(claim, adjusted=tuple(adjusted[i, j] for j in range(len(claim.contrasts))))
        for i, claim in enumerate(found)
    ]


def _checked(comparison: Comparison, asked: AskedClaim, seed: int, labels: Mapping[str, str]) -> list[CheckedClaim]:
    places = _places(comparison, asked.names)
    found = []
    for variants, runs in places:
        label = comparison.labels[variants[0].name] if len(places) > 1 else ""
        missing, apart = tuple(name for name in asked.names if not runs[name]), list[str]()
        measure: Measure | None = AT_GAIN
        if asked.claim.check == "least_at_gain":
            contrasts, apart = _least_at_gain(comparison, asked, runs, seed, labels)
        else:
            measure, contrasts = _contrasts(comparison, asked, runs, seed)
        command = _command(variants)
        found.append(CheckedClaim(asked, label, measure, tuple(contrasts), missing, command, tuple(apart)))
    return found


def _places(comparison: Comparison, names: Sequence[str]) -> list[tuple[list[Variant], Runs]]:
    """Variants that differ in seeds alone and have most of these models; all variants if together they have more."""
    groups = list(by_settings(comparison.collection.variants).values())
    known = [(variants, _runs(comparison, variants, names)) for variants in groups]
    everywhere = _runs(comparison, comparison.collection.variants, names)
    most = max(sum(map(bool, runs.values())) for _, runs in known)
    if sum(map(bool, everywhere.values())) > most and all(len(lines) <= 1 for lines in everywhere.values()):
        used = {name for lines in everywhere.values() for line in lines for name in line.variants[:1]}
        return [([v for v in comparison.collection.variants if v.name in used], everywhere)]
    best = [(variants, runs) for variants, runs in known if sum(map(bool, runs.values())) == most]
    # Variants that share these models are one place, unless they measured them differently.
    models = [[(line.row.model, line.row.directories) for lines in runs.values() for line in lines] for _, runs in best]
    return [place for i, place in enumerate(best) if models[i] not in models[:i]]


def _runs(comparison: Comparison, variants: Sequence[Variant], names: Sequence[str]) -> Runs:
    own = {variant.name for variant in variants}
    # Two names may be of one artifact, and a name of one artifact in several variants.
    lines = list({(line.name, line.row.model): line for line in comparison.lines if own & {*line.variants}}.values())
    return {
        name: [line for line in lines if line.name == name] or [one for one in lines if one.name.startswith(f"{name}-")]
        for name in names
    }


def _contrasts(
    comparison: Comparison, asked: AskedClaim, runs: Runs, seed: int
) -> tuple[Measure | None, list[Contrast]]:
    of, than = (_present(models, runs) for models in (asked.of, asked.than))
    claim = asked.claim
    pairs = list(itertools.pairwise(of)) if claim.check == "rising" else [(b, a) for a in of for b in than]
    lines = [line for pair in pairs for _, found in pair for line in found]
    measures = (measure_of(comparison, lines, one) for one in claim.measures) if pairs else iter(())
    measure = next((one for one in measures if one is not None), None)
    if measure is None:
        return None, []
    least = -claim.margin.get(measure.unit.name, 0.0)
    if claim.check == "no_more":
        pairs = [(b, a) for a, b in pairs]
    return measure, [contrast(comparison, measure, more, less, least, seed) for less, more in pairs]


def _present(names: Sequence[str], runs: Runs) -> list[tuple[str, list[ModelResult]]]:
    return [(name, runs[name]) for name in names if runs[name]]


def _least_at_gain(
    comparison: Comparison, asked: AskedClaim, runs: Runs, seed: int, labels: Mapping[str, str]
) -> tuple[list[Contrast], list[str]]:
    """The contrasts, and the methods that reach no gain that the claim's own reaches."""
    own_lines = [line for lines in runs.values() for line in lines]
    found = next(iter(frontiers(comparison, seed, lines=own_lines)), None)
    called = {line.label: labels[name] for name, lines in runs.items() if name in labels for line in lines}
    methods = {
        line.label: replace(method, label=called.get(line.label, method.label))
        for method in (found.methods if found else ())
        for line in method.lines
    }
    of, than = ([methods.get(line.label) for name in names for line in runs[name]] for names in (asked.of, asked.than))
    own = next((method for method in of if method is not None), None)
    if found is None or own is None:
        return [], []
    others = {method.label: method for method in than if method is not None and method.label != own.label}
    each = {
        label: at_equal_gain(own, method, found.num_items, comparison.confidence) for label, method in others.items()
    }
    return [one for contrasts in each.values() for one in contrasts], [label for label in each if not each[label]]


def _command(variants: Sequence[Variant]) -> str:
    """What makes these variants: one run each, or a sweep over their seeds."""
    return "; ".join(map(_run, by_settings(variants).values()))


def _run(variants: Sequence[Variant]) -> str:
    words = [split_overrides(variant.name) for variant in variants]
    seeds: dict[str, list[str]] = {}
    for key, _, value in (word.partition("=") for own in words for word in own if is_seed(word)):
        seeds.setdefault(key, []).append(value)
    shared = [word for word in words[0] if not is_seed(word)]
    swept = [f"{key}={','.join(dict.fromkeys(values))}" for key, values in seeds.items()]
    flag = ["-m"] if len(variants) > 1 else []
    return shlex.join(["python", "-m", "pipeline", *flag, *shared, *swept])
