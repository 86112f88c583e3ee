"""Options ranked by their mean token log-probability, where an item may have several right ones: UNFAIR-ToS.

The paper takes AdaptLLM's protocol (Cheng et al. 2023, arXiv 2309.09530): prompts with their examples filled in, every
option scored after the prompt, the best one picked, right if it is among the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.data.sources.documents import RowSource
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, smallest_hashes
from pipeline.evaluation.tasks.gold import ScoredOption, gold_loss
from pipeline.evaluation.tasks.rows import Absent, Rows, read_rows

METRIC = "multi_label_acc"
NUM_BOOTSTRAP = 1000
_COLUMNS: dict[str, type | tuple[type, ...]] = {"input": str, "options": list, "gold_index": (list, int)}


@dataclass(frozen=True)
class LabelledOptions:
    """A label out of a fixed list, for prompts that are complete as they stand.

    Attributes:
        splits: {split: source} of one split with the columns `input` (the prompt), `options` (texts) and `gold_index`
            (one number, or the numbers of all labels that are right).
        limit: prompts to score, those with the smallest content hashes; null scores all.
    """

    splits: Mapping[str, RowSource]
    limit: int | None
    scores_gold: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.splits) != 1:
            raise ValueError(f"splits has {sorted(self.splits)}; exactly one is required")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1, or null for every prompt")
        if isinstance(origin := self._origin(), Absent):
            raise ValueError(f"{origin.repo}: {origin.advice()}")

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per prompt: numerator 1 if the picked option is among the labels; macro-F1 beside.

        Beside it the mean loss of its labels (`pipeline.evaluation.tasks.gold`).
        """
        from pipeline.evaluation.tasks.loglikelihood import SharedPrefixLM

        return self.score(SharedPrefixLM(model, tokenizer, inputs.progress), inputs)

    def score(self, lm: Any, inputs: Workspace) -> Outcome:
        """As `run`, with any model object of lm-evaluation-harness that counts tokens (`tok_encode`)."""
        rows = [checked(number, row) for number, row in enumerate(read_rows(self._origin(), inputs))]
        if not rows:
            raise ValueError("the split holds no row; at least one is required, so look at it")
        numbers = smallest_hashes(rows, self.limit)
        scored = scored_options(lm, [rows[number] for number in numbers])
        picks = [picked(options) for options in scored]
        golds = [labels(rows[number]) for number in numbers]
        items = [self._item(number, rows[number], options) for number, options in zip(numbers, scored, strict=True)]
        num_labels = max(len(rows[number]["options"]) for number in numbers)
        share, common = commonest(golds, num_labels)
        name = next(row["options"][common] for row in rows if len(row["options"]) > common)
        also = {"macro_f1": macro_f1(picks, golds, num_labels), "commonest_label_share": share}
        error = ""
        if len(items) > 1:
            also["macro_f1_stderr"] = macro_f1_stderr(picks, golds, num_labels)
            error = f" ± {also['macro_f1_stderr']:.4f} (standard error, bootstrap over items)"
        note = (
            f"Macro-F1 over {num_labels} labels is {also['macro_f1']:.4f}{error}. "
            f"Always answering {name!r} would score {share:.4f}."
        )
        return Outcome(METRIC, True, tuple(items), (note,), also)

    def _origin(self) -> RowSource:
        return next(iter(self.splits.values()))

    def _item(self, number: int, row: Mapping[str, Any], options: Sequence[ScoredOption]) -> Item:
        right, pick = labels(row), picked(options)
        digest = content_hash(row["input"], row["options"], sorted(right), METRIC)
        gold = ", ".join(row["options"][label] for label in sorted(right))
        texts = row["input"], row["options"][pick], gold
        return Item(str(number), digest, float(pick in right), 1.0, "", *texts, gold_loss=gold_loss(options, right))


def checked(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that count. Raises ValueError if one is missing, of another type or out of range."""
    for name, kind in _COLUMNS.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(
                f"row {number} has {name}={row.get(name)!r}; columns input, options, gold_index are needed"
            )
    kept = {name: row[name] for name in _COLUMNS}
    if not labels(kept) or not all(0 <= label < len(kept["options"]) for label in labels(kept)):
        raise ValueError(f"row {number} has gold_index={row['gold_index']!r}, which names no option of its own")
    return kept


def labels(row: Mapping[str, Any]) -> frozenset[int]:
    """Numbers of the right options."""
    gold = row["gold_index"]
    return frozenset([gold] if isinstance(gold, int) else gold)


def scored_options(lm: Any, rows: Rows) -> list[list[ScoredOption]]:
    """Each row's options after a space, with their log-probabilities and numbers of tokens."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (row["input"], f" {option}"), place, ("options", number, 1))
        for number, row in enumerate(rows)
        for place, option in enumerate(row["options"])
    ]
    sums = iter(lm.loglikelihood(requests))
    return [
        [ScoredOption(one, next(sums)[0], _num_tokens(lm, row["input"], f" {one}")) for one in row["options"]]
        for row in rows
    ]


def picked(options: Sequence[ScoredOption]) -> int:
    """The option with the best mean log-probability per token; the first of equals."""
    means = [option.logprob / option.length for option in options]
    return means.index(max(means))


def _num_tokens(lm: Any, context: str, continuation: str) -> int:
    return len(lm._encode_pair(context, continuation)[1])


def macro_f1(picks: Sequence[int], golds: Sequence[frozenset[int]], num_labels: int) -> float:
    """Mean over labels of 2 tp / (2 tp + fp + fn); a label that is neither right nor picked anywhere counts 0."""
    scores = []
    for label in range(num_labels):
        hits = sum(pick == label and label in gold for pick, gold in zip(picks, golds, strict=True))
        both = sum(pick == label for pick in picks) + sum(label in gold for gold in golds)
        scores.append(2 * hits / both if both else 0.0)
    return math.fsum(scores) / num_labels


def macro_f1_stderr(picks: Sequence[int], golds: Sequence[frozenset[int]], num_labels: int) -> float:
    """The standard deviation of macro-F1 over bootstrap draws of the items, the same draws for the same number.

    Two models on the same items are drawn alike, so that their errors can be told from the difference between them.
    """
    import numpy as np

    chosen = np.array([[pick == label for label in range(num_labels)] for pick in picks], dtype=float)
    right = np.array([[label in gold for label in range(num_labels)] for gold in golds], dtype=float)
    size = len(picks)
    times = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=NUM_BOOTSTRAP).astype(float)
    hits, both = times @ (chosen * right), times @ (chosen + right)  # (draws, labels)
    scores = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return float(scores.mean(axis=1).std(ddof=1))


def commonest(golds: Iterable[frozenset[int]], num_labels: int) -> tuple[float, int]:
    """(share of items, label) of the label that is right most often: what a constant answer scores."""
    golds = list(golds)
    counts = [sum(label in gold for gold in golds) for label in range(num_labels)]
    return max(counts) / len(golds), counts.index(max(counts))
