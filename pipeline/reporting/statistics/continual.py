"""What a sequence of tasks left: measures of a score matrix, over any leading axes such as bootstrap draws.

Shapes: R is [..., T + 1, T]: row 0 are the scores before any task, row t those after task t, column i those of task i
(here from 0); larger is better. NaN where a score was not measured. Every measure is NaN where it needs such a one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.records.items import Floats, Items


class Measure(NamedTuple):
    """A measure of a score matrix: its name, what it is, how many tasks it needs, whether it is a change and no score,
    and whether that is a loss."""

    title: str
    text: str
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
    "op": Measure("OP", "mean score after the last task", overall_performance, 1, False),
    "bwt": Measure("BWT", "what later tasks changed of earlier ones", backward_transfer),
    "fwt": Measure("FWT", "what earlier tasks changed of later ones before these were learned", forward_transfer),
    "forgetting": Measure("Forgetting", "from each task's best to the end", forgetting, is_loss=True),
    "la": Measure("Learning accuracy", "mean score of each task when just learned", learning_accuracy, 1, False),
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
    another model's. In as large a share of all items as makes none in n just not surprising they may still be: the
    exact bound of a binomial share (Clopper and Pearson 1934), as for a single difference (`statistics.intervals`).
    """
    found, known = draws.copy(), set[bytes]()
    for m, items in enumerate(models):
        answers = items.numerators.tobytes()
        if items.is_hit_or_miss:
            weights = items.denominators
            uniforms = rng.random((2, len(draws)))
            share = float(weights.max() / weights.mean()) * (1 - uniforms[0] ** (1 / weights.size))
            if not items.numerators.any():
                found[:, m] = np.minimum(share, 1)
            elif (items.numerators == weights).all():
                found[:, m] = np.maximum(1 - share, 0)
            elif answers in known:
                found[:, m] += np.where(uniforms[1] < 0.5, share, -share)
        known.add(answers)
    return found
