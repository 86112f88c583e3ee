"""What a model pays for text by how much of it it has seen: the loss at ranges of positions in its window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.evaluation.base import Outcome, Workspace, num_rows
from pipeline.evaluation.text.perplexity import HeldOutText
from pipeline.evaluation.text.shift import check_edges, range_name

Sums = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class PositionLoss(HeldOutText):
    """Bits per byte as HeldOutText has them, document by document, and bits per token at ranges of positions.

    A token's position is the number of tokens before it in its window, so 1 is the first that is predicted.

    Attributes:
        edges: ascending last positions of the ranges; what lies beyond the last is a range too.
        others: as for HeldOutText.
    """

    edges: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_edges(self.edges)

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per document: numerator bits, denominator bytes; a part per range: bits over tokens."""
        from pipeline.evaluation.text.windows import score_tokens

        scored = score_tokens(model, self.passages(tokenizer, num_rows(model), inputs), self.window, inputs)
        items = [
            replace(item, parts=self._parts(positions))
            for item, positions in zip(scored.outcome.items, scored.positions, strict=True)
        ]
        return replace(scored.outcome, items=tuple(items))

    def _parts(self, positions: Sequence[tuple[int, float]]) -> Sums:
        bits: dict[str, list[float]] = {}
        for first in [1, *(edge + 1 for edge in self.edges)]:
            bits[range_name(first, self.edges)] = []
        for position, nats in positions:
            first = max(start for start in [1, *(edge + 1 for edge in self.edges)] if start <= position)
            bits[range_name(first, self.edges)].append(nats / math.log(2))
        return {f"bits/token at {name}": (math.fsum(found), float(len(found))) for name, found in bits.items() if found}
