"""Self-distillation: keep the next-token distributions near those of the model that training starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.training.cost.flops import Cost
from pipeline.training.methods.penalty import MicroBatch, check_weight

if TYPE_CHECKING:  # a request is checked without
    import numpy as np
    import torch

_IGNORED = -100
_PLACES = {"all": (1, 0), "labels": (0, 1), "prompt": (1, -1)}  # how many: per token, and per label beside


@dataclass(frozen=True)
class KlToBase:
    """T^2 KL(base || model) in nats a token, both at temperature T over the whole vocabulary.

    T^2 keeps the size of its gradient whatever T is (Hinton et al., arXiv 1503.02531, section 2.1). The direction is
    that of drift: what the base would say must stay likely. The base is the model before the first step, which after
    an exact expansion computes what the unexpanded one does.

    Attributes:
        tokens: at which distributions are compared. "labels": where the next token is learned; "prompt": where it is
            not, such as in what a user says; "all": both. Padding never counts.
    """

    weight: float
    temperature: float
    tokens: Literal["all", "labels", "prompt"]
    needs_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError for a value that cannot be run."""
        check_weight("kl_to_base", self.weight)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} of kl_to_base must be more than 0")
        if self.tokens not in _PLACES:
            raise ValueError(f"tokens={self.tokens!r} of kl_to_base is not known; use all, labels or prompt")

    def count(self, labels: np.ndarray, padding: np.ndarray) -> int:
        """See `Penalty.count`."""
        return int(self._counted(labels, padding).sum())

    def total(self, batch: MicroBatch) -> torch.Tensor:
        """See `Penalty.total`."""
        from pipeline.training.kernels.chunked import chunked_kl

        counted = self._counted(batch.labels, batch.padding)
        return chunked_kl(batch.states.at(counted), batch.base_states().at(counted), self.temperature, batch.chunk)

    def adds(self, cost: Cost) -> Cost:
        """The base's forward pass, and where distributions are compared both heads and the model's backwards."""
        per_token, per_label = _PLACES[self.tokens]
        heads = 2 * cost.head_forward + cost.head_backward
        return replace(
            cost,
            added=cost.added + cost.forward + per_token * heads,
            added_label=cost.added_label + per_label * heads,
            row_forward=2 * cost.row_forward,
            windows=tuple(replace(window, added=window.added + window.forward) for window in cost.windows),
        )

    def _counted(self, labels: Any, padding: Any) -> Any:
        """bool: the places whose distributions are compared; of arrays and of tensors."""
        if self.tokens == "labels":
            return labels != _IGNORED
        return ~padding if self.tokens == "all" else ~padding & (labels == _IGNORED)
