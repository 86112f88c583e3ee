"""How LESA's network is trained: settings that are checked before anything is computed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SAMPLES = ("rows", "columns")


@dataclass(frozen=True)
class Fitting:
    """How the network is trained.

    Attributes:
        samples: what it learns from: "rows" (published) of the matrices V, or their whitened "columns" (ours); each has
            its own form of the loss, see `latent.loss_of`.
        hidden: width of its two hidden layers.
        num_epochs: passes over all samples of all blocks that have two neighbours.
        batch_size: samples.
        lr: of AdamW.
        norm_weight: lambda, the weight of the squared difference of norms beside the mean squared error.
        seed: of its first weights and of the order of samples.
    """

    samples: Literal["rows", "columns"] = "rows"
    hidden: int = 256
    num_epochs: int = 5
    batch_size: int = 64
    lr: float = 1e-3
    norm_weight: float = 5e-5
    seed: int = 0
