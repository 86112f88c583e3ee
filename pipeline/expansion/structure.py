"""What a model's blocks are made of, found by building it without weights and running it, not by a list of names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import nn

from pipeline.expansion.block_calls import call_block, stream_of, watch_calls
from pipeline.expansion.block_signature import BlockSignature, signature_of
from pipeline.expansion.zero_propagation import PLUS, SCALED, STREAM, ZERO, Fact, interpret, order_of_use
from pipeline.models.architecture.blocks import own_lists
from pipeline.models.architecture.custom_models import register_custom_models


@dataclass
class MetaModel:
    """A causal language model built on the meta device.

    Attributes:
        prefix: where its blocks are, as a module's name with a dot at the end ("model.layers.").
        model: without weights.
        config: as transformers read it, with every default filled in.
        calls: for each block, a function from the stream to its output.
        streams: for each block, a stand-in for its input, [B, T, D].
    """

    prefix: str
    model: nn.Module
    config: Any
    blocks: list[nn.Module]
    calls: list[Callable[[torch.Tensor], Any]]
    streams: list[torch.Tensor]
    _found: dict[Any, tuple[str, ...]] = field(default_factory=dict)

    def targets(self, stored: str) -> tuple[str, ...]:
        """The parameters of the model that a tensor of this name on disk makes, by transformers' own conversion."""
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        renamings = [rule for rule in self._conversions if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in self._conversions if isinstance(rule, WeightConverter)]
        base = self.model.base_model_prefix
        target, pattern = rename_source_key(stored, renamings, converters, base, self._state)
        if target not in self._state and stored in self._state:
            return (stored,)
        if pattern is None:
            return (target,)
        rule = next(rule for rule in converters if pattern in rule.source_patterns)
        first = rule.target_patterns[0]
        return tuple(target.replace(first, other) for other in rule.target_patterns)

    @cached_property
    def _conversions(self) -> list[Any]:
        from transformers.conversion_mapping import get_model_conversion_mapping

        return get_model_conversion_mapping(self.model)

    @cached_property
    def _state(self) -> dict[str, Any]:
        return self.model.state_dict()

    def parameters_from(self, stored: str) -> tuple[str, ...]:
        """Of `targets`, the parameters proper: none for a buffer, or for what transformers does not load."""
        return tuple(name for name in self.targets(stored) if name in self._parameter_names)

    @cached_property
    def _parameter_names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.model.named_parameters(remove_duplicate=False))

    @property
    def num_blocks(self) -> int:
        """The depth."""
        return len(self.blocks)

    def parameters(self, block: int) -> dict[str, torch.Tensor]:
        """The parameters of one block by the rest of their names."""
        return dict(self.blocks[block].named_parameters())

    @cached_property
    def signatures(self) -> list[BlockSignature]:
        """One a block."""
        return [signature_of(block) for block in self.blocks]

    def writers(self, block: int) -> tuple[str, ...]:
        """The residual writers of one block: the parameters, weights and biases, that are zero in an identity block.

        The smallest set, as late in the block as can be, of matrices and of vectors beside them, for which the block's
        output is proven to be its input.

        Raises:
            ValueError: there is none, and what was found.
        """
        return self._once("writers", block, self._find_writers)

    def norms(self, block: int) -> tuple[str, ...]:
        """The norm scales (and offsets) which, set to nothing, make the block the identity: Shen et al. 2022.

        Raises:
            ValueError: they cannot, for instance because a bias stands behind them.
        """
        return self._once("norms", block, self._find_norms)

    def is_identity(self, block: int, zero: Iterable[str], minus_one: Iterable[str] = ()) -> bool:
        """Whether the block's output is proven to be its input with these parameters zero (or -1)."""
        parameters = self.parameters(block)
        facts = [(parameters[name], ZERO) for name in zero]
        facts += [(parameters[name], Fact.MINUS_ONE) for name in minus_one]
        return self._fact(block, facts) is STREAM

    def scales(self, block: int, names: Iterable[str]) -> bool:
        """Whether what the block adds to the stream directly is proportional to these parameters taken together."""
        parameters = self.parameters(block)
        return self._fact(block, [(parameters[name], SCALED) for name in names]) is PLUS

    def zero_centred(self, block: int, norm: str) -> bool:
        """Whether a norm multiplies by 1 + its weight (Gemma), so that -1 switches it off."""
        scales = self.norms(block)
        return norm in scales and not self.is_identity(block, scales)

    def _once(self, what: str, block: int, find: Callable[[int], tuple[str, ...]]) -> tuple[str, ...]:
        key = (what, self.signatures[block])
        if key not in self._found:
            self._found[key] = find(block)
        return self._found[key]

    def _fact(self, block: int, facts: list[tuple[torch.Tensor, Fact]]) -> Fact:
        return interpret(self.calls[block], self.streams[block], facts)

    def _find_writers(self, block: int) -> tuple[str, ...]:
        parameters = self.parameters(block)
        matrices = {name.rpartition(".")[0] for name, value in parameters.items() if value.dim() > 1}
        beside = [n for n, v in parameters.items() if v.dim() > 1 or n.rpartition(".")[0] in matrices]
        if not self.is_identity(block, beside):
            rest = [n for n, v in parameters.items() if n not in beside and n.endswith("bias")]
            beside += rest
            if not rest or not self.is_identity(block, beside):
                raise ValueError(
                    f"block {block} ({type(self.blocks[block]).__name__}) cannot be made an identity block: even with "
                    "all of its matrices zero its output is not shown to be its input (a norm over the stream itself, "
                    "a scaled or gated stream, or an operation that is not understood); found the parameters "
                    f"{', '.join(sorted(parameters))}. Use an initialisation that is not exact, such as "
                    "expand.init=copy, or another model"
                )
        used = order_of_use(self.calls[block], self.streams[block], parameters)
        return self._least(block, beside, used)

    def _least(self, block: int, names: list[str], used: list[str]) -> tuple[str, ...]:
        """Drop what need not be zero, earliest first; experts that stand in a list are dropped or kept together."""
        kinds: dict[str, list[str]] = {}
        for name in sorted(names, key=lambda n: used.index(n) if n in used else -1):
            kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)

        def names_of(kept: Iterable[str]) -> list[str]:
            return [name for kind in kept for name in kinds[kind]]

        return tuple(sorted(names_of(least(kinds, lambda kept: self.is_identity(block, names_of(kept))))))

    def _find_norms(self, block: int) -> tuple[str, ...]:
        parameters = self.parameters(block)
        matrices = {name.rpartition(".")[0] for name, value in parameters.items() if value.dim() > 1}
        scales = [n for n, v in parameters.items() if v.dim() == 1 and n.rpartition(".")[0] not in matrices]
        used = order_of_use(self.calls[block], self.streams[block], {n: parameters[n] for n in scales})
        for way in ("zero", "minus_one"):
            switch_off = partial(self._norms_switch_off, block, way)
            if switch_off(used):
                return tuple(sorted(least(reversed(used), switch_off)))
        raise ValueError(
            f"block {block} ({type(self.blocks[block]).__name__}) is not an identity with its norms "
            f"{', '.join(scales)} set to nothing, for instance because biases stand behind them; use "
            "expand.init=zero_writers"
        )

    def _norms_switch_off(self, block: int, way: str, names: list[str]) -> bool:
        offsets = [n for n in names if n.endswith("bias")]
        weights = [n for n in names if n not in offsets]
        if way == "zero":
            return self.is_identity(block, names)
        return self.is_identity(block, offsets, minus_one=weights)

    def check_grown(self, config: Mapping[str, Any], origins: Sequence[int]) -> None:
        """Build an expanded model without weights and compare each of its blocks with the one it stands for.

        Args:
            config: of the expanded model.
            origins: this model's block for each block of that one.

        Raises:
            ValueError: a block is built differently from its origin, and in what.
        """
        grown = build(config)
        if grown.num_blocks != len(origins):
            raise ValueError(f"the expanded config makes {grown.num_blocks} blocks, the plan has {len(origins)}")
        for position, origin in enumerate(origins):
            if difference := self.signatures[origin].difference(grown.signatures[position]):
                raise ValueError(
                    f"block {position} of the expanded {type(grown.model).__name__} would not be built like block "
                    f"{origin}, which it stands for: {difference}. Its config says this by a rule over block indices "
                    "that has no list to write instead; choose other blocks to copy (expand.origin=last) or places "
                    "that keep the rule (expand.position=explicit)"
                )


def least(things: Iterable[str], enough: Callable[[list[str]], bool]) -> list[str]:
    """What is left of all after each that the rest is `enough` without is dropped, in this order."""
    kept = list(things)
    for one in tuple(kept):
        others = [other for other in kept if other != one]
        if enough(others):
            kept = others
    return kept


def build(config: Mapping[str, Any]) -> MetaModel:
    """Build the model of a config.json on the meta device and run it once to see how its blocks are called.

    The last few are kept: a plan, its check and a pack ask for the same ones.

    Raises:
        ValueError: transformers does not know the architecture, or no single list of blocks takes the stream.
    """
    return _build(json.dumps(config, sort_keys=True))


@lru_cache(maxsize=8)
def _build(text: str) -> MetaModel:
    import transformers

    settings = json.loads(text)
    model_type = settings.pop("model_type", None)
    register_custom_models(model_type)
    try:
        loaded = transformers.AutoConfig.for_model(model_type, **settings)
        loaded._attn_implementation = "eager"
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                loaded, dtype=torch.bfloat16, attn_implementation="eager"
            ).eval()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"transformers {transformers.__version__} cannot build a causal language model of model_type="
            f"{model_type!r} from this config.json: {error}"
        ) from error
    depth = loaded.get_text_config().num_hidden_layers
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    seen = watch_calls(model, lists)
    own = own_lists(model, seen)
    if len(own) != 1:
        raise ValueError(
            f"expected one list of {depth} blocks that the model runs in turn, found "
            f"{', '.join(sorted(own)) or 'none'} in {type(model).__name__}"
        )
    name, calls = own[0], seen[own[0]]
    blocks = list(dict(lists)[name])
    return MetaModel(
        prefix=f"{name}.",
        model=model,
        config=loaded,
        blocks=blocks,
        calls=[partial(call_block, block, args, kwargs) for block, (args, kwargs) in zip(blocks, calls, strict=True)],
        streams=[stream_of(args, kwargs) for args, kwargs in calls],
    )
