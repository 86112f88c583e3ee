"""EWC: stay near the start in the parameters that text in general depends on. Kirkpatrick et al., arXiv 1612.00796."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.data.general_text import check_bounds
from pipeline.data.sources.documents import Text
from pipeline.training.methods.penalty import check_weight

if TYPE_CHECKING:  # a request is checked without
    import torch

    from pipeline.training.parallel.same_rows import SameRows


@dataclass(frozen=True)
class Ewc:
    """weight / 2 * sum_i F_i (theta_i - theta*_i)^2 (equation 3); theta* is what the stage starts from.

    F is the diagonal of the Fisher information at theta*, a token: over documents d of T predicted tokens in sum,
    F_i = sum_d (d log p(d) / d theta_i)^2 / T. Near the start the sum is then about KL(start || model) in nats a token
    on such text, as far as a diagonal tells it, so that the weight has the size of `kl_to_base`'s.

    Documents pass one at a time; F is as large as what trains, in fp32, and is kept beside the checkpoints.

    Attributes:
        general: a source of documents of the kind that the base was trained on.
        window: tokens of one document, at most.
        max_tokens: of all documents together, each of which costs a forward and a backward pass, once.
        labels: what is predicted. "model": tokens drawn from the start itself at each place, for which the mean is
            the Fisher information; "data": the text's own, the "empirical Fisher", which many implementations take
            and which is something else (Kunstner et al. 2019, arXiv 1905.12558).
        seed: of the drawn tokens.
    """

    weight: float
    general: Text
    window: int
    max_tokens: int
    labels: Literal["model", "data"]
    seed: int
    num_copies: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Raise ValueError for a value that cannot be run."""
        check_weight("ewc", self.weight)
        check_bounds(self)
        if self.labels not in ("model", "data"):
            raise ValueError(f"labels={self.labels!r} of ewc is not known; use model or data")

    def importance(
        self, trainable: Mapping[str, torch.Tensor], same: SameRows, rows: Callable[[], Sequence[Sequence[int]]]
    ) -> dict[str, torch.Tensor]:
        """See `ParameterPenalty.importance`. Raises ValueError: there is no text."""
        import torch

        from pipeline.training.parallel.distributed import own_part

        fisher = {name: torch.zeros_like(p, requires_grad=False) for name, p in trainable.items()}
        num_tokens = 0
        for index, row in enumerate(rows()):
            seed = self.seed * 1_000_003 + index if self.labels == "model" else None
            with same.gradient([row], self.window, seed) as predicted:
                num_tokens += predicted
                for name, parameter in trainable.items():
                    if parameter.grad is not None:
                        grad = own_part(parameter.grad)
                        own_part(fisher[name]).addcmul_(grad, grad)
        for one in fisher.values():
            own_part(one).div_(num_tokens)
        return fisher
