"""Terms that a strategy adds to the loss of training. Each is a frozen dataclass named by `_target_`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pipeline.training.cost.flops import Cost
from pipeline.training.cost.memory import ZERO_STAGES

if TYPE_CHECKING:  # a request is checked without
    import numpy as np
    import torch

    from pipeline.training.kernels.chunked import States
    from pipeline.training.parallel.same_rows import SameRows


@dataclass(frozen=True)
class MicroBatch:
    """What a penalty may read of a forward pass; X are the places of all its rows, in order.

    Attributes:
        model: the causal language model that trains, adapters in place; with fsdp2 its parameters are DTensors.
        base: a frozen copy of it as it was before the first step; None if no penalty needs one.
        states: of the model, at all places.
        base_states: gives those of the base, which computes when it is first asked.
        labels: int[X], the token to be predicted at each place, or -100.
        padding: bool[X], places that hold no token.
        chunk: tokens whose logits may be in memory at once.
        num_rows: among which the places are shared out evenly.
        router_logits: of each router from the bottom, [X, E]; empty if no penalty has `needs_routers`.
    """

    model: Any
    base: Any
    states: States
    base_states: Callable[[], States]
    labels: torch.Tensor
    padding: torch.Tensor
    chunk: int
    num_rows: int
    router_logits: Sequence[torch.Tensor] = ()


@runtime_checkable
class Penalty(Protocol):
    """Added to the loss as its weight times its mean over what it counts in a global batch, tokens for most.

    One that looks at parameters alone counts each row that is not all padding, and sums its value once for each. One
    with a true `needs_routers` is given what the routers of a mixture of experts computed.
    """

    @property
    def weight(self) -> float:
        """0: it is measured, and trains nothing."""

    @property
    def needs_base(self) -> bool:
        """Whether it compares with the model that training starts from."""

    def count(self, labels: np.ndarray, padding: np.ndarray) -> int:
        """What it counts in a row with these labels (-100: none) and padding (bool)."""

    def total(self, batch: MicroBatch) -> torch.Tensor:
        """Its sum over what it counts in a micro batch."""

    def adds(self, cost: Cost) -> Cost:
        """A cost with what it needs itself."""


@runtime_checkable
class ParameterPenalty(Protocol):
    """Weight times sum_i F_i (theta_i - theta*_i)^2 / 2 over all numbers that train; theta* is where training started.

    It is computed once a step, whatever the micro batch and however parameters lie; see `methods.start_distance`. With
    adapters it is their own numbers that it holds, not the weights that they are merged into.
    """

    @property
    def weight(self) -> float:
        """0: it is measured, and trains nothing."""

    @property
    def num_copies(self) -> int:
        """How many fp32 copies of what trains it holds: 1, the start; 2, F as well."""

    def importance(
        self, trainable: Mapping[str, torch.Tensor], same: SameRows, rows: Callable[[], Sequence[Sequence[int]]]
    ) -> dict[str, torch.Tensor] | None:
        """F of what trains, laid out over the processes as it is; None: 1 everywhere.

        Args:
            trainable: by name, as training starts from them.
            same: computes gradients of them.
            rows: reads the text that the penalty names (`ReadsGeneralText`), as token ids.
        """


AnyPenalty = Penalty | ParameterPenalty


def of_batches(penalties: Mapping[str, Any]) -> dict[str, Penalty]:
    """Those that look at what the model computes."""
    return {name: penalty for name, penalty in penalties.items() if isinstance(penalty, Penalty)}


def num_copies(penalties: Mapping[str, AnyPenalty]) -> int:
    """How many fp32 copies of what trains all of them hold."""
    return sum(penalty.num_copies for penalty in penalties.values() if isinstance(penalty, ParameterPenalty))


def check_weight(name: str, weight: float) -> None:
    """Raise ValueError for a weight that cannot be run."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight={weight} of {name} must be at least 0; 0 measures without training")


def needs_base(penalties: Mapping[str, AnyPenalty]) -> bool:
    """Whether any of them compares what the model computes with what it did when training started."""
    return any(penalty.needs_base for penalty in of_batches(penalties).values())


def with_penalties(cost: Cost, penalties: Mapping[str, AnyPenalty]) -> Cost:
    """A cost with what all of them need."""
    return reduce(lambda found, penalty: penalty.adds(found), of_batches(penalties).values(), cost)


def check_penalties(penalties: Mapping[str, AnyPenalty], sharding: str) -> None:
    """Refuse what cannot be run.

    Raises:
        ValueError: one of them is no penalty, or the model is partitioned by DeepSpeed.
    """
    for name, penalty in penalties.items():
        if not isinstance(penalty, Penalty | ParameterPenalty):
            raise ValueError(
                f"strategy.penalties.{name}={penalty!r} is not a penalty; give the keys of an option of conf/penalty "
                f"(+penalty@STAGE.strategy.penalties.{name}=...), or remove it (~STAGE.strategy.penalties.{name})"
            )
    if penalties and sharding in ZERO_STAGES:
        raise ValueError(
            f"launch.sharding={sharding} cannot train with penalties ({', '.join(penalties)}); use none or fsdp2"
        )
