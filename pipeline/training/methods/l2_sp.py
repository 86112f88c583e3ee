"""L2-SP: stay near the start in parameters, all of which count the same. Li et al., arXiv 1802.01483, equation 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipeline.training.methods.penalty import check_weight

if TYPE_CHECKING:  # a request is checked without
    import torch

    from pipeline.training.parallel.same_rows import SameRows


@dataclass(frozen=True)
class L2Sp:
    """weight / 2 * |theta - theta*|^2 over what trains; theta* is what the stage starts from.

    The paper's second term, weight decay of a new head, is `weight_decay`, which pulls to 0 here as well: set it to 0
    for the paper's. It is added to the gradient and not decoupled from AdamW, as the paper adds it to the loss.
    """

    weight: float
    num_copies: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Raise ValueError for a value that cannot be run."""
        check_weight("l2_sp", self.weight)

    def importance(
        self, trainable: Mapping[str, torch.Tensor], same: SameRows, rows: Callable[[], Sequence[Sequence[int]]]
    ) -> None:
        """See `ParameterPenalty.importance`: 1 everywhere."""
