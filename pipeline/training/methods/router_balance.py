"""A load-balancing loss for routers that train: without it few experts get all tokens."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.training.cost.flops import Cost
from pipeline.training.cost.memory import ZERO_STAGES
from pipeline.training.methods.penalty import MicroBatch

if TYPE_CHECKING:  # a request is checked without
    import numpy as np
    import torch

    from pipeline.training.kernels.routers import Routers

NAME = "router_balance"


@dataclass(frozen=True)
class RouterBalance:
    """Mean over routers that train of E/k sum_i f_i P_i, each row weighted by its tokens; see `kernels.routers`.

    Each layer and row by itself: transformers pools all layers of a micro batch, which hides an imbalance of single
    layers and makes the result depend on the micro batch. Its coefficient c, of a sum without the 1/k, stands for a
    weight of c k here; the weight of a paper that adds up its L layers' losses stands for L times as much.

    Attributes:
        weight: alpha. 0 measures without training.
        routers: of the model.
        trained: which of them train, counted from the bottom.
    """

    weight: float
    routers: Routers
    trained: tuple[int, ...]
    needs_base: ClassVar[bool] = False
    needs_routers: ClassVar[bool] = True

    def count(self, labels: np.ndarray, padding: np.ndarray) -> int:
        """See `Penalty.count`: tokens, labelled or not."""
        return int((~padding).sum())

    def total(self, batch: MicroBatch) -> torch.Tensor:
        """See `Penalty.total`."""
        import torch

        from pipeline.training.kernels.routers import imbalance

        padding_BT = batch.padding.view(batch.num_rows, -1)
        each = [imbalance(batch.router_logits[index], padding_BT, self.routers) for index in self.trained]
        return torch.stack(each).mean()

    def adds(self, cost: Cost) -> Cost:
        """Nothing worth counting: the logits are there."""
        return cost


def with_router_balance(
    penalties: Mapping[str, Any], weight: float | None, model: Any, routers: Routers | None, sharding: str = "none"
) -> dict[str, Any]:
    """The strategy's penalties, and this one where a router trains and its weight is not None.

    Where DeepSpeed shards the model, which trains without penalties, it is left out, and that is said.

    Args:
        model: whose `requires_grad` are final.
    """
    if weight is None or routers is None or NAME in penalties:
        return dict(penalties)
    modules = dict(model.named_modules())
    trained = [i for i, name in enumerate(routers.names) if any(p.requires_grad for p in modules[name].parameters())]
    if trained and sharding in ZERO_STAGES:
        warnings.warn(
            f"router_balance={weight} is ignored: launch.sharding={sharding} cannot train with penalties; use none or "
            "fsdp2, or experts may be left without tokens",
            stacklevel=3,
        )
        return dict(penalties)
    return {**penalties, **({NAME: RouterBalance(weight, routers, tuple(trained))} if trained else {})}
