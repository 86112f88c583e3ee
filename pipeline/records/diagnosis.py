"""What leaving blocks out of a model showed: an evaluation keeps it beside its items, and the report reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.records.expansion import NewBlock, origins


@dataclass(frozen=True)
class Removal:
    """The loss of a model without some blocks, set against the whole model's document by document.

    Attributes:
        positions: of the blocks left out.
        value: bits per byte more than the whole model pays; positive means that the blocks help.
        stderr, low, high: of `value` over documents, a normal interval; nan for a single document.
        numerators: bits of each document, in the order of the items.
    """

    positions: tuple[int, ...]
    value: float
    stderr: float
    low: float
    high: float
    numerators: tuple[float, ...]

    @property
    def is_harmless(self) -> bool:
        """The loss is not shown to rise: the interval does not lie above zero. False where there is no interval."""
        return self.low <= 0

    @property
    def mark(self) -> str:
        """As of a difference: `worse` or `better` (the interval excludes zero), `within`, or `identical`."""
        if self.value == self.low == self.high == 0:
            return "identical"
        return "worse" if self.low > 0 else "better" if self.high < 0 else "within"

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not a number is null."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: None if value != value else value for name, value in plain.items()}  # only nan is not itself

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Removal:
        """Read what `to_json` gave; KeyError, TypeError or ValueError where it is something else."""
        value, stderr, low, high = (
            math.nan if content[key] is None else float(content[key]) for key in ("value", "stderr", "low", "high")
        )
        return cls(tuple(content["positions"]), value, stderr, low, high, tuple(map(float, content["numerators"])))


@dataclass(frozen=True, kw_only=True)
class DiagnosedBlock(NewBlock):
    """A new block, whether its output still has its input's bits everywhere, and the loss without it.

    A candidate for dropping is one whose removal is harmless.
    """

    is_identity: bool
    without: Removal
    is_candidate: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "without": self.without.to_json()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> DiagnosedBlock:
        """Read what `to_json` gave; KeyError, TypeError or ValueError where it is something else."""
        return cls(**{**entry, "without": Removal.from_json(entry["without"])})


@dataclass(frozen=True)
class Diagnosis:
    """Of one model.

    Attributes:
        confidence: of the intervals.
        updates: relative size of every block's update to the stream, in the order of the stack.
        blocks: the new ones; empty for a model that was not expanded.
        without_all: all new blocks left out; None where there are none.
        without_candidates: all candidates for dropping left out together; None where there are none.
    """

    confidence: float
    updates: tuple[float, ...]
    blocks: tuple[DiagnosedBlock, ...]
    without_all: Removal | None
    without_candidates: Removal | None

    @property
    def is_untouched(self) -> bool:
        """Every new block still is an exact identity."""
        return all(block.is_identity for block in self.blocks)

    @property
    def origins(self) -> dict[int, int]:
        """Position of each new block -> position of its origin, both in this model."""
        return origins(self.blocks, len(self.updates))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "confidence": self.confidence,
            "updates": list(self.updates),
            "blocks": [block.to_json() for block in self.blocks],
            "without_all": self.without_all and self.without_all.to_json(),
            "without_candidates": self.without_candidates and self.without_candidates.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Diagnosis:
        """Read what `to_json` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            both = (content["without_all"], content["without_candidates"])
            together = (None if one is None else Removal.from_json(one) for one in both)
            updates = tuple(map(float, content["updates"]))
            blocks = tuple(map(DiagnosedBlock.from_json, content["blocks"]))
            found = cls(float(content["confidence"]), updates, blocks, *together)
            _ = found.origins
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"holds no whole diagnosis ({error!r})") from error
        return found
