"""A retention budget: how far a model may fall below its base, judged on the items that both answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pipeline.reporting.plain import finite
from pipeline.reporting.statistics.differences import Difference, combine
from pipeline.reporting.statistics.intervals import Items, paired_difference, score
from pipeline.reporting.tables.wording import number, percent

OVERALL, OVERALL_GOLD = "overall", "overall_gold"

Term = tuple[float, Difference]
"""A weight, and what it weighs."""


@dataclass(frozen=True)
class Judgement:
    """One measure, or the mean over all of them, against its budget.

    Attributes:
        name, title: of the benchmark; `overall` or `overall_gold` for a mean.
        base, model: scores in the metric's own unit; nan for the mean.
        change: relative to the base's score and turned so that negative is a loss; -0.02 is a loss of 2 %.
        low, high: its interval. The base's score in the denominator is taken as known.
        max_drop: the budget, as a positive fraction of the base's score.
        is_violated: by the gate's rule.
    """

    name: str
    title: str
    base: float
    model: float
    change: float
    low: float
    high: float
    max_drop: float
    n: int
    is_violated: bool


@dataclass(frozen=True)
class Gate:
    """What a model must keep of its base.

    Attributes:
        budgets: benchmark -> the largest drop, as a fraction of the base's score on it; None: only the mean is judged.
        overall: the largest mean drop over these benchmarks, each counting the same, or None.
        overall_gold: the same of the loss of their right answers, in bits per byte, over those that have one, or None.
        fail_if: when a budget counts as exceeded. `shown`: the whole interval lies beyond it, so chance is no excuse.
            `estimated`: the estimate does. `possible`: any part of the interval does; the model must prove that it kept
            within the budget (a test of non-inferiority), and a small benchmark fails for being small.
        confidence, num_bootstrap, seed: of the paired bootstrap intervals.
    """

    budgets: Mapping[str, float | None]
    overall: float | None
    overall_gold: float | None
    fail_if: str
    confidence: float
    num_bootstrap: int
    seed: int

    def judge(
        self,
        base: Mapping[str, Items],
        model: Mapping[str, Items],
        titles: Mapping[str, str],
        same_model: bool = False,
    ) -> tuple[Judgement, ...]:
        """Every budget against the two models' items; the mean comes last.

        `same_model`: the two are known to compute the same; else equal answers do not prove that nothing was lost.

        Raises:
            ValueError: naming the benchmark, if the two answered different items.
        """
        judgements, terms = [], []
        for name, max_drop in self.budgets.items():
            difference = self._difference(name, model[name], base[name], same_model)
            scores = score(base[name]).value, score(model[name]).value
            terms.append(_term(difference, scores[0]))
            if max_drop is not None:
                change = _relative(difference, scores[0])
                judgements.append(self._judgement((name, titles[name]), scores, change, max_drop, difference.n))
        if self.overall is not None:
            judgements.append(self._mean((OVERALL, "Mean over all"), terms, self.overall))
        if self.overall_gold is not None:
            terms = self._gold_terms(base, model, same_model)
            judgements.append(self._mean((OVERALL_GOLD, "Mean over the gold answers"), terms, self.overall_gold))
        return tuple(judgements)

    def _gold_terms(self, base: Mapping[str, Items], model: Mapping[str, Items], same_model: bool) -> list[Term]:
        terms = []
        for name in self.budgets:
            found, reference = model[name].gold, base[name].gold
            if found is not None and reference is not None:
                difference = self._difference(f"{name}.gold", found, reference, same_model)
                terms.append(_term(difference, score(reference).value))
        if not terms:
            raise ValueError(
                "evaluate.gate.overall_gold: of the judged benchmarks none has the loss of its right answers on both "
                "models; judge a task with options or short answers, or set it to null"
            )
        return terms

    def _mean(self, names: tuple[str, str], terms: Sequence[Term], max_drop: float) -> Judgement:
        mean = combine([(weight / len(terms), d) for weight, d in terms], confidence=self.confidence)
        change, unknown = (mean.value, mean.low, mean.high), (math.nan, math.nan)
        return self._judgement(names, unknown, change, max_drop, mean.n)

    def _difference(self, name: str, model: Items, base: Items, same_model: bool) -> Difference:
        differ = partial(paired_difference, confidence=self.confidence, num_bootstrap=self.num_bootstrap)
        try:
            return differ(model, base, seed=self.seed, stream=name, same_model=same_model)
        except ValueError as error:
            raise ValueError(f"the gate on {name}: {error}") from error

    def _judgement(
        self,
        names: tuple[str, str],
        scores: tuple[float, float],
        change: tuple[float, float, float],
        max_drop: float,
        n: int,
    ) -> Judgement:
        value, low, high = change
        judged = {"shown": high, "estimated": value, "possible": low}[self.fail_if]
        return Judgement(*names, *scores, value, low, high, max_drop, n, judged < -max_drop)


def message(judgements: tuple[Judgement, ...], gate: Gate, row: str) -> str:
    """What was found: one sentence, and where a budget is exceeded a line per measure, the exceeded ones first."""
    num_violated = sum(judgement.is_violated for judgement in judgements)
    meaning = {
        "shown": f"beyond the budget with its whole {percent(gate.confidence)} interval",
        "estimated": "beyond the budget",
        "possible": f"not shown to keep within the budget (its {percent(gate.confidence)} interval reaches beyond)",
    }[gate.fail_if]
    total = f"{len(judgements)} drop{'s' if len(judgements) > 1 else ''} from the base"
    if not num_violated:
        return f"the {row} model keeps what the gate asks for: none of {total} is {meaning}"
    are = "is" if num_violated == 1 else "are"
    head = f"the {row} model does not keep what the gate asks for: of {total} {num_violated} {are} {meaning}"
    return "\n".join([head, *map(_line, sorted(judgements, key=lambda j: not j.is_violated))])


def record(judgements: tuple[Judgement, ...]) -> list[dict[str, Any]]:
    """The judgements as plain JSON values; what is not finite becomes null."""
    return [{name: finite(value) for name, value in asdict(judgement).items()} for judgement in judgements]


def _term(difference: Difference, base: float) -> Term:
    return (1 / abs(base) if base else 0.0), difference


def _relative(difference: Difference, base: float) -> tuple[float, float, float]:
    """Value, low and high as fractions of the base's score, negative for a loss; a base at 0 has nothing to lose."""
    if base == 0:
        return 0.0, 0.0, 0.0
    low, high = difference.low, difference.high
    if not difference.higher_is_better:
        low, high = -high, -low
    value, low, high = (bound / abs(base) for bound in (difference.value * difference.sign, low, high))
    return value, low, high


def _line(judgement: Judgement) -> str:
    scores = ""
    if not math.isnan(judgement.base):
        scores = f"{number(judgement.base, 4)} -> {number(judgement.model, 4)}, "
    bounds = "no interval"
    if math.isfinite(judgement.low):
        bounds = f"{_percents(judgement.low)} to {_percents(judgement.high)}"
    state = "FAILED" if judgement.is_violated else "kept"
    return (
        f"  {state:6}  {judgement.title}: {scores}{_percents(judgement.change)} ({bounds}); "
        f"budget {_percents(-judgement.max_drop)}; {judgement.n:,} items"
    )


def _percents(share: float) -> str:
    return f"{number(share * 100, 2, signed=True)} %"
