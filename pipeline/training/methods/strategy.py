"""Which parameters train. Each strategy is a frozen dataclass named by `_target_`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pipeline.models.architecture.adapters import (
    adapted_parameters,
    original_name,
    refuse_adapted,
    refuse_shared,
    tell_left_out,
)
from pipeline.models.architecture.custom_models import check_adaptable
from pipeline.records.expansion import ExpansionMap
from pipeline.training.cost.flops import Trains, nearest_rank
from pipeline.training.methods.copied_blocks import copied_blocks
from pipeline.training.methods.extra_modules import extra_parameters
from pipeline.training.methods.penalty import AnyPenalty

if TYPE_CHECKING:  # a request is checked without
    import torch
    from torch import nn

    from pipeline.training.parallel.same_rows import Rows, SameRows


class Strategy(Protocol):
    """Marks what trains, and hands back what was trained under the names of the saved model.

    It may also have `check(num_blocks, expanded, model_type)`, which raises ValueError for a model that it cannot
    train, before any work: how many blocks it will have, whether it is an expanded one, and its type; None where that
    is not known. One that goes on with what an earlier stage left beside its model has `carry_on(model, source)`,
    called once the model is as `apply` makes it, and `carried(model)`: the tensors that it leaves itself.
    """

    needs_new_parameters: ClassVar[bool]
    """Whether it can train only a model that was expanded."""

    @property
    def penalties(self) -> Mapping[str, AnyPenalty]:
        """Terms that it adds to the loss, by name."""

    def footprint(self) -> Trains | None:
        """What it trains, for estimates of memory and FLOPs; None: not known beforehand."""

    def apply(self, model: Any, new_parameters: Sequence[str]) -> Any:
        """Set `requires_grad` on exactly what trains and return the model to train."""

    def lr_scales(self, expansion: ExpansionMap) -> dict[str, float]:
        """What the learning rate is multiplied by, for parameters for which that is not 1, by name."""

    def writes(self, model: Any) -> dict[str, torch.Tensor]:
        """Before training: what `trained` will give, with the values of before."""

    def trained(self, model: Any) -> dict[str, torch.Tensor]:
        """After training: the tensors that may differ from the source, by the source's names."""


def apply_strategy(strategy: Strategy, model: nn.Module, expansion: ExpansionMap, source: Path | None = None) -> Any:
    """The model to train, marked by the strategy, but for what an expansion made a constant of the architecture.

    Args:
        source: the directory that it was loaded from, whose earlier training some strategies go on with.

    Raises:
        ValueError: see the strategy; or it would change such a constant by an update of its own (LoRA).
    """
    fixed = {name: model.get_parameter(name) for name in expansion.fixed_parameters}
    model_to_train = strategy.apply(model, [name for name in expansion.module_parameters if name not in fixed])
    for parameter in fixed.values():
        parameter.requires_grad_(False)
    if moved := fixed.keys() & set(strategy.writes(model_to_train)):
        raise ValueError(
            f"the strategy would change {', '.join(sorted(moved)[:2])} ({len(moved)}), which must keep its value in a "
            f"model expanded with {expansion.method}; leave it out of strategy.target_modules"
        )
    if source is not None and hasattr(strategy, "carry_on"):
        strategy.carry_on(model_to_train, source)
    return model_to_train


@runtime_checkable
class AdaptsRates(Protocol):
    """A strategy that sets parameters' learning rates along the run, by text in general."""

    def rates(self, expansion: ExpansionMap, same: SameRows, optimizer: Any, rows: Rows, num_steps: int) -> Any:
        """What does it: `is_due(step)`, `measure()`, which sets them and returns a record, and its state."""


@dataclass(frozen=True)
class Full:
    """Train every parameter, all at one learning rate: the scales of new blocks are for training them alone.

    Attributes:
        extra_modules: of this and of the strategies made from it: modules that train as well, by name; see
            `extra_parameters`. Here all do.
    """

    penalties: Mapping[str, AnyPenalty] = field(default_factory=dict)
    extra_modules: Sequence[str] = ()
    needs_new_parameters: ClassVar[bool] = False

    def footprint(self) -> Trains | None:
        """See `Strategy.footprint`."""
        return Trains("full")

    def apply(self, model: nn.Module, new_parameters: Sequence[str]) -> nn.Module:
        """See `Strategy.apply`. Raises ValueError: there is no such extra module."""
        extra_parameters(model, self.extra_modules)
        return model.requires_grad_(True)

    def lr_scales(self, expansion: ExpansionMap) -> dict[str, float]:
        """None; see the class."""
        return {}

    def writes(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """See `Strategy.writes`."""
        return _trainable(model)

    def trained(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """See `Strategy.trained`."""
        return _trainable(model)


@dataclass(frozen=True)
class NewBlocks(Full):
    """Train exactly the parameters that the expansion created (LLaMA Pro, section 3.2), by their recorded names."""

    needs_new_parameters: ClassVar[bool] = True

    def footprint(self) -> Trains | None:
        """See `Strategy.footprint`."""
        return None if self.extra_modules else Trains("new_blocks")

    def apply(self, model: nn.Module, new_parameters: Sequence[str]) -> nn.Module:
        """Freeze everything but `new_parameters` and the extra modules.

        Raises:
            ValueError: there are none, or the model lacks one: it is not the model that was expanded.
        """
        if not new_parameters:
            raise ValueError(
                "strategy new_blocks found no new parameters: the model was not expanded. "
                "Expand it (expand=block), or train with strategy full or lora"
            )
        parameters = dict(model.named_parameters())
        # What a new block has and no gradient reaches: DeepSeek-V3 keeps the bias of its routing as a buffer.
        buffers = {name for name, _ in model.named_buffers()}
        if missing := sorted(set(new_parameters) - set(parameters) - buffers):
            raise ValueError(f"the model has no parameter named {', '.join(missing[:4])} ({len(missing)} missing)")
        wanted = set(new_parameters)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in wanted)
        return with_extra(model, self.extra_modules)

    def lr_scales(self, expansion: ExpansionMap) -> dict[str, float]:
        """What the expansion recorded for each new block (ADEPT, arXiv 2510.10071); other methods recorded 1."""
        return expansion.lr_scales()


@dataclass(frozen=True)
class Lora:
    """Train low-rank updates of the linear layers (peft) and merge them into the weights at the end.

    LoRA, arXiv 2106.09685.

    Attributes:
        rank: or "matched": the one whose number of trained parameters is nearest to that of the new blocks that
            `expansion` would add to the model, the smaller of two that are as near.
        alpha: None: twice the rank.
        target_modules: peft's: "all-linear", or a list of module names.
        expansion: that is matched, as an object; read with rank="matched" alone.
        extra_modules: modules that train in full beside the adapters, by name; see `extra_parameters`.
    """

    rank: int | Literal["matched"]
    alpha: float | None
    dropout: float
    target_modules: str | list[str]
    penalties: Mapping[str, AnyPenalty] = field(default_factory=dict)
    expansion: Any = None
    extra_modules: Sequence[str] = ()
    needs_new_parameters: ClassVar[bool] = False

    def footprint(self) -> Trains | None:
        """See `Strategy.footprint`."""
        if self.target_modules != "all-linear" or self.extra_modules:
            return None
        return Trains("lora", blocks=self._matched) if self.rank == "matched" else Trains("lora", self.rank)

    def check(self, num_blocks: int | None, expanded: bool | None, model_type: str | None = None) -> None:
        """See `Strategy`. Raises ValueError: there is no such rank, or no adapters of such a model."""
        check_adaptable(model_type, self.target_modules)
        if self.rank == "matched":
            self._matched(num_blocks)
        elif self.rank < 1:
            raise ValueError(f"strategy.rank={self.rank} must be at least 1, or matched")

    def apply(self, model: nn.Module, new_parameters: Sequence[str]) -> nn.Module:
        """Wrap the model's linear layers, and let the extra modules train.

        Raises:
            ValueError: no module matches `target_modules` (peft), or one has its weight in common with another: merged,
                the update of one would change both; or an extra module has an adapter.
        """
        check_adaptable(model.config.model_type, self.target_modules)
        rank = self._rank_for(model) if self.rank == "matched" else self.rank
        extra = extra_parameters(model, self.extra_modules)
        adapted = self._wrapped(model, rank)
        refuse_shared(model)
        refuse_adapted(model, extra)
        if self.target_modules == "all-linear":
            tell_left_out(model)
        for parameter in extra.values():
            parameter.requires_grad_(True)
        return adapted

    def lr_scales(self, expansion: ExpansionMap) -> dict[str, float]:
        """None: no parameter that trains is a new block's own."""
        return {}

    def writes(self, model: Any) -> dict[str, torch.Tensor]:
        """The weights that carry an adapter, and the extra modules'."""
        return adapted_parameters(model) | {
            original_name(name): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and "lora_" not in name
        }

    def trained(self, model: Any) -> dict[str, torch.Tensor]:
        """Merge, and return the weights that carried an adapter, and the extra modules'."""
        written = list(self.writes(model))
        merged = dict(model.merge_and_unload().named_parameters())
        return {name: merged[name] for name in written}

    def _wrapped(self, model: nn.Module, rank: int) -> Any:
        import peft

        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        return peft.get_peft_model(model, config)

    def _matched(self, num_blocks: int | None) -> list[int]:
        """The blocks whose copies are matched."""
        try:
            return copied_blocks(self.expansion, num_blocks, "strategy.rank a number, such as 64")
        except ValueError as error:
            raise ValueError(f"strategy lora with rank=matched: {error}") from error

    def _rank_for(self, model: nn.Module) -> int:
        """Counted on the model as it stands: adapters of rank 1 are put in and taken out again."""
        import torch

        from pipeline.models.architecture.blocks import decoder_blocks

        blocks = decoder_blocks(model)
        wanted = sum(p.numel() for number in self._matched(len(blocks)) for p in blocks[number].parameters())
        with torch.random.fork_rng(devices=[]):  # the run draws as with this rank written out
            adapted = self._wrapped(model, 1)
            per_rank = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            adapted.unload()
        return nearest_rank(wanted, per_rank)


def with_extra(model: nn.Module, patterns: Sequence[str]) -> nn.Module:
    """The model, with the modules that these patterns name training too. Raises ValueError: see `extra_parameters`."""
    for parameter in extra_parameters(model, patterns).values():
        parameter.requires_grad_(True)
    return model


def _trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
