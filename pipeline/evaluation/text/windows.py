"""From passages to bits: windows of tokens, batched by length and scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.tokens.vocabulary import check_rows
from pipeline.evaluation.base import Item, Outcome, Workspace, num_rows
from pipeline.evaluation.model.scoring import IGNORED, TokenScorer, batches
from pipeline.evaluation.text.passages import Passage

METRIC = "bits_per_byte"


def windows(tokens: Sequence[int], scored: Sequence[bool], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(inputs, targets) of at most `size` tokens each; every scored token is a target exactly once.

    Windows without a scored token are left out, and so is what follows a window's last one. A window after the first
    begins with the token before it and no BOS: as a row of training that begins inside a document.
    """
    for start in range(0, len(tokens) - 1, size):
        after = range(start + 1, min(start + size, len(tokens) - 1) + 1)
        last = max((i for i in after if scored[i]), default=start)
        if last > start:
            yield list(tokens[start:last]), [tokens[i] if scored[i] else IGNORED for i in range(start + 1, last + 1)]


@dataclass(frozen=True)
class Scored:
    """The outcome over passages, and for each the position in its window and the nats of every scored token."""

    outcome: Outcome
    positions: Sequence[Sequence[tuple[int, float]]]


def score_passages(model: Any, passages: Sequence[Passage], size: int, inputs: Workspace) -> Outcome:
    """One item per passage: numerator its bits, denominator its bytes. Windows of all passages share batches."""
    return score_tokens(model, passages, size, inputs).outcome


def score_tokens(model: Any, passages: Sequence[Passage], size: int, inputs: Workspace) -> Scored:
    """As `score_passages`, token by token. Raises NoRowError for a token that the model has no row for."""
    for passage in passages:
        check_rows(passage.tokens, num_rows(model), f"item {passage.id!r}")
    scorer = TokenScorer(model)
    cuts = [(i, *window) for i, p in enumerate(passages) for window in windows(p.tokens, p.scored, size)]
    nats: list[list[float]] = [[] for _ in passages]
    positions: list[list[tuple[int, float]]] = [[] for _ in passages]
    total, done = sum(len(window[1]) for window in cuts), 0
    for batch in batches(cuts, [len(window[1]) for window in cuts], scorer.batch_tokens):
        for (i, tokens, targets), row in zip(
            batch, scorer.score([w[1] for w in batch], [w[2] for w in batch]), strict=True
        ):
            nats[i].append(-float(row.logprobs.double().sum()))
            places = [place for place, target in enumerate(targets, start=1) if target != IGNORED]
            positions[i] += zip(places, (-row.logprobs.double()).tolist(), strict=True)
            done += len(tokens)
        inputs.progress(step=done, total=total, note="tokens scored")
    items = (
        Item(passage.id, passage.hash, math.fsum(parts) / math.log(2), float(passage.num_bytes), prompt=passage.text)
        for passage, parts in zip(passages, nats, strict=True)
    )
    return Scored(Outcome(METRIC, False, tuple(items)), positions)
