"""What a sequence of tasks left: measures of a score matrix, over any leading axes such as bootstrap draws.

Shapes: R is [..., T + 1, T]: row 0 are the scores before any task, row t those after task t, column i those of task i
(here from 0); larger is better. NaN where a score was not measured. Every measure is NaN where it needs such a one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.records.items import Floats, Items
from pipeline.reporting.statistics.intervals import unseen_draws


class Measure(NamedTuple):
    """A measure of a score matrix: its name, how many tasks it needs, whether it is a change and no score, and whether
    that is a loss."""

    title: str
    compute: Callable[[Floats], Floats]
    min_tasks: int = 2
    is_change: bool = True
    is_loss: bool = False


def overall_performance(scores: Floats) -> Floats:
    """OP: the mean score over all tasks after the last (TRACE, arXiv 2310.06762)."""
    return scores[..., -1, :].mean(axis=-1)


def backward_transfer(scores: Floats) -> Floats:
    """BWT: the mean of R[T, i] - R[i, i] over all tasks but the last (Lopez-Paz and Ranzato, arXiv 1706.08840; TRACE
    has the same denominator)."""
    return (scores[..., -1, :-1] - _learned(scores)[..., :-1]).mean(axis=-1)


def forward_transfer(scores: Floats) -> Floats:
    """FWT: the mean of R[i - 1, i] - R[0, i] over all tasks but the first: before a task is learned, against the model
    before any task (Lopez-Paz and Ranzato take a random one)."""
    return (_diagonal(scores, 0) - scores[..., 0, :])[..., 1:].mean(axis=-1)


def forgetting(scores: Floats) -> Floats:
    """The mean of max over t < T of R[t, i] - R[T, i] over all tasks but the last (Chaudhry et al., arXiv 1801.10112).
    Scores that were not measured are no maximum."""
    best = np.fmax.reduce(scores[..., 1:-1, :-1], axis=-2)
    return (best - scores[..., -1, :-1]).mean(axis=-1)


def learning_accuracy(scores: Floats) -> Floats:
    """LA: the mean of R[i, i], each task's score when it was just learned (Riemer et al., arXiv 1810.11910)."""
    return _learned(scores).mean(axis=-1)


MEASURES = {
    "op": Measure("OP", overall_performance, 1, False),
    "bwt": Measure("BWT", backward_transfer),
    "fwt": Measure("FWT", forward_transfer),
    "forgetting": Measure("Forgetting", forgetting, is_loss=True),
    "la": Measure("Learning accuracy", learning_accuracy, 1, False),
}


def measured(scores: Floats) -> dict[str, Floats]:
    """Every measure that so many tasks have, by name."""
    num_tasks = scores.shape[-1]
    return {name: one.compute(scores) for name, one in MEASURES.items() if num_tasks >= one.min_tasks}


def _learned(scores: Floats) -> Floats:
    return _diagonal(scores, 1)


def _diagonal(scores: Floats, first: int) -> Floats:
    """[..., T]: R[i + first, i] for every task i."""
    tasks = np.arange(scores.shape[-1])
    return scores[..., tasks + first, tasks]


def with_unseen(models: Sequence[Items], draws: Floats, rng: np.random.Generator) -> Floats:
    """[B, M] draws of scores on the same items, widened where right-or-wrong answers leave no room for chance.

    Of answers that are all right, or all wrong, no draw shows that some may be otherwise, nor of those that equal
    another model's. They may still be, as `unseen_draws` has it for a single difference too; a score stays in [0, 1].
    """
    found, known = draws.copy(), set[bytes]()
    for m, items in enumerate(models):
        answers, are_right = items.numerators.tobytes(), items.numerators == items.denominators
        if items.is_hit_or_miss and (answers in known or are_right.all() or not items.numerators.any()):
            unseen = unseen_draws(items.denominators, rng.random((2, len(draws))))
            found[:, m] = np.clip(found[:, m] + unseen, 0, 1)
        known.add(answers)
    return found
