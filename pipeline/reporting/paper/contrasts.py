"""How much more of a measure one model has than another, item by item and over seeds: what claims are checked by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.records.gold import BITS_PER_BYTE
from pipeline.records.items import KL_NATS
from pipeline.reporting.compare import KEPT_GROUPS, Comparison, ModelResult
from pipeline.reporting.frontier import Method
from pipeline.reporting.seeds import excluded_at, spread
from pipeline.reporting.statistics.alike import are_alike
from pipeline.reporting.statistics.differences import Difference, combine
from pipeline.reporting.statistics.frontier import drift_difference, known_at
from pipeline.reporting.statistics.intervals import paired_difference
from pipeline.reporting.statistics.permutation import draws_p_value
from pipeline.reporting.tables.wording import Unit

AT_SHARES = (0.25, 0.5, 0.75)
"""Of the range of gains that two methods share, where they are compared."""


class Measure(NamedTuple):
    """Benchmarks whose mean is taken, in what unit, and what it is called."""

    names: tuple[str, ...]
    unit: Unit
    title: str


@dataclass(frozen=True)
class Contrast:
    """What one model has more than another; of drift, which is worse, less.

    Attributes:
        of, than: the two models, for people.
        value, low, high: in the measure's unit, with the interval over items and, of several runs, seeds.
        p: two-sided, of the value against `least`.
        least: what it must exceed for a claim to hold.
        num_runs: pairs of training runs, and `counts` the runs of each model.
        models: labels of all models that it is computed from.
        at: the gain on the domain at which they are compared, "" for none.
    """

    of: str
    than: str
    value: float
    low: float
    high: float
    p: float
    least: float
    num_runs: int
    models: tuple[str, ...]
    at: str = ""
    counts: tuple[int, int] = (1, 1)

    @property
    def runs(self) -> str:
        """How many runs of each model there were, for people."""
        own, other = self.counts
        if own == other:
            return str(own)
        return f"{own} and {other}" if 1 in self.counts else f"{self.num_runs} pairs of {own} and {other}"

    @property
    def is_more(self) -> bool:
        return self.value > self.least


def measure_of(comparison: Comparison, lines: Sequence[ModelResult], asked: str | tuple[str, ...]) -> Measure | None:
    """What a claim asks for, if all of these models were measured by it in one unit and on the same items."""
    shared = [b for b in comparison.benchmarks if _is_shared(b.name, lines)]
    metrics = {b.name: lines[0].row.evaluations[b.name].metric for b in shared}
    of_kept = [b for b in shared if b.group in KEPT_GROUPS]
    golds = [b.name for b in of_kept if b.gold_of]
    shares = [b.name for b in of_kept if not b.gold_of and comparison.units[b.name].name == "%"]
    own = [b.name for b in shared if not b.gold_of]
    if isinstance(asked, tuple):
        names, title = [name for name in asked if name in metrics], ""
        names = names if len(names) == len(asked) else []
    elif asked == "domain":
        domain = [b.name for b in shared if b.group == "domain"]
        names, title = [name for name in domain if name in own and metrics[name] == BITS_PER_BYTE], "domain text"
    elif asked == "drift":
        names, title = [name for name in own if metrics[name] == KL_NATS], "drift"
    else:
        names, title = (golds, "gold answers") if golds else (shares, "kept tasks")
    if len({comparison.units[name].name for name in names}) != 1:
        return None
    title = title or ", ".join(b.title for b in shared if b.name in names)
    return Measure(tuple(names), _of_changes(comparison.units[names[0]]), title)


def _is_shared(benchmark: str, lines: Sequence[ModelResult]) -> bool:
    found = [line.row.evaluations[benchmark] for line in lines if benchmark in line.row.evaluations]
    return len(found) == len(lines) and are_alike(found)


def contrast(
    comparison: Comparison,
    measure: Measure,
    of: tuple[str, Sequence[ModelResult]],
    than: tuple[str, Sequence[ModelResult]],
    least: float,
    seed: int,
) -> Contrast:
    """The runs of one model against those of another, pair by pair; a single run stands in every pair.

    Raises:
        ValueError: two models answered different items.
    """
    counts = (len(of[1]), len(than[1]))
    num_pairs = max(counts) if 1 in counts else min(counts)
    pairs = itertools.islice(zip(itertools.cycle(of[1]), itertools.cycle(than[1]), strict=False), num_pairs)
    found = [_difference(comparison, measure, one, other, seed) for one, other in pairs]
    models = tuple(line.label for line in (*of[1], *than[1]))
    if len(found) == 1:
        (one,) = found
        p = draws_p_value(one.draws - least) if math.isfinite(one.low) else 1.0
        return Contrast(of[0], than[0], one.value, one.low, one.high, p, least, 1, models)
    values, stderrs = [one.value for one in found], [one.stderr for one in found]
    over, p = spread(values, comparison.confidence, stderrs), excluded_at(values, stderrs, least)
    return Contrast(of[0], than[0], over.mean, over.low, over.high, p, least, len(found), models, counts=counts)


def at_equal_gain(own: Method, other: Method, num_items: int, confidence: float) -> list[Contrast]:
    """How much less a method drifted than another at a quarter, half and three quarters of the gains that both reach;
    none where they share none."""
    low, high = (max(own.curve[0].gain, other.curve[0].gain), min(own.curve[-1].gain, other.curve[-1].gain))
    models = tuple(line.label for method in (own, other) for line in method.lines)
    found = []
    for gain in (low + share * (high - low) for share in AT_SHARES if low < high):
        (ours, our_draws), (theirs, their_draws) = known_at(own.curve, gain), known_at(other.curve, gain)
        gap = drift_difference(theirs - ours, their_draws - our_draws, confidence, num_items)
        p = draws_p_value(gap.draws) if math.isfinite(gap.low) else 1.0
        at = f"{gain:.4f} bits/byte"
        found.append(Contrast(own.label, other.label, gap.value, gap.low, gap.high, p, 0.0, 1, models, at))
    return found


def _difference(
    comparison: Comparison, measure: Measure, model: ModelResult, other: ModelResult, seed: int
) -> Difference:
    terms = []
    for name in measure.names:
        try:
            difference = paired_difference(
                model.row.evaluations[name],
                other.row.evaluations[name],
                confidence=comparison.confidence,
                num_bootstrap=comparison.num_bootstrap,
                seed=seed,
                stream=name,
            )
        except ValueError as error:
            raise ValueError(f"{model.label} against {other.label} on {name}: {error}") from error
        terms.append((measure.unit.scale / len(measure.names), difference))
    return combine(terms, confidence=comparison.confidence)


def _of_changes(unit: Unit) -> Unit:
    """A unit as differences have it: points of per cent; their values are scaled already."""
    return Unit("points", unit.scale, 2, True) if unit.name == "%" else unit
