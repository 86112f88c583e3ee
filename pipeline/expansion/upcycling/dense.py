"""What upcycling methods share: which models they take, config.json field by field, the plan around the new FFNs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.expansion.base import Plan, Recipe, grow_map
from pipeline.expansion.layout import Slot
from pipeline.expansion.source import Source
from pipeline.models.architecture.shape import shape_of

GATE, UP, DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
UNITS_AXIS = {GATE: 0, UP: 0, DOWN: 1}
"""The matrices of a gated FFN, by the rest of their names, and along which axis its hidden units lie."""

_BIASES = ("attention_bias", "mlp_bias")
# Of the dense families alone; those that bear on what is computed are refused unless they say nothing.
_DENSE_ONLY = (*_BIASES, "model_type", "architectures", "auto_map", "pretraining_tp", "layer_types")
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "tie_word_embeddings", "rope_parameters", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What dense and sparse families call alike, though each has defaults of its own: always written out."""


@dataclass(frozen=True)
class Changes:
    """What makes experts differ from the start, each of which changes the function.

    Attributes:
        drop_ratio: r of Drop-Upcycling (arXiv 2502.19261): that share of an expert's hidden units is drawn anew, normal
            with mean and deviation of the values replaced in each of gate, up and down. The units are the same in all
            three, as the paper has it; its released code draws them apart for each.
        noise: deviation of normal noise that is added, as a multiple of the matrix's own.
        seed: of what is drawn.
    """

    drop_ratio: float
    noise: float
    seed: int

    def __post_init__(self) -> None:
        """Raise ValueError for a value that cannot be used."""
        if not 0 <= self.drop_ratio <= 1:
            raise ValueError(f"drop_ratio={self.drop_ratio} must be at least 0 and at most 1")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise={self.noise} must be at least 0")

    def __bool__(self) -> bool:
        return bool(self.drop_ratio or self.noise)


def check_routing(num_experts: int, top_k: int, router_std: float) -> None:
    """Raise ValueError for numbers of experts that cannot be, or a router whose choices are all ties."""
    if type(num_experts) is not int or num_experts < 2:
        raise ValueError(f"num_experts={num_experts!r} must be a whole number of at least 2")
    if type(top_k) is not int or not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k={top_k!r} must be at least 1 and at most num_experts={num_experts}")
    if not 0 < router_std < float("inf"):
        raise ValueError(
            f"router_std={router_std} must be more than 0: of a router of zeros all choices are ties, and experts that "
            "begin alike never part"
        )


def check_dense(config: Mapping[str, Any], families: Sequence[str], target: str) -> None:
    """Refuse a model whose blocks the sparse architecture cannot hold.

    Args:
        config: its config.json.
        families: whose FFNs can become experts there.
        target: the name of that architecture.

    Raises:
        ValueError: it is of another family, or has biases or alternating attention that the target has no place for.
    """
    family = config.get("model_type")
    if family not in families:
        raise ValueError(
            f"{target} upcycling makes experts of the FFNs of {', '.join(families)}; this model is of "
            f"model_type={family!r}. Use a base model of one of these, or expand=block"
        )
    if family == "mistral" and config.get("layer_types") is not None:
        raise ValueError(
            f"{target} upcycling: config.json has layer_types with model_type='mistral' (Ministral), whose attention "
            "alternates; use a base model without, or expand=block"
        )
    if biased := [key for key in _BIASES if config.get(key)]:
        raise ValueError(
            f"{target} upcycling: config.json has {', '.join(f'{key}=true' for key in biased)}, and {target} has no "
            "place for these biases; use a base model without them, or expand=block"
        )


def sparse_config(config: Mapping[str, Any], effective: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the upcycled model.

    Args:
        config: that of the dense model, of which everything is kept that is not of its family alone.
        effective: the same with every default of its family filled in, which are others than the sparse family's.
        own: every field that the sparse family has and the dense one has not, or means otherwise; None: leave it out.
    """
    kept = {key: value for key, value in config.items() if key not in _DENSE_ONLY}
    shared = {key: effective[key] for key in _SHARED if key in effective}
    return {key: value for key, value in {**kept, **shared, **own}.items() if value is not None or key not in own}


def facts_of_sparse(
    facts: Callable[[str, str], Any], of: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """What is known of the upcycled model beforehand; `of` gives its config.json by the dense model's."""
    if not (config := facts("model", "config")):
        return {}
    sparse = of(config)
    kept = {"model_type": sparse["model_type"], "num_blocks": facts("model", "num_blocks")}
    return {**kept, "config": sparse, "shape": shape_of(sparse)}


@dataclass
class Written:
    """What replaces the FFNs, gathered block by block.

    Attributes:
        recipes: by name on disk.
        new: names on disk of new parameters -> the parameters of the loaded model that they are in.
        fixed: parameters of the loaded model that never train.
        heirs: tensors of the dense model that are gone -> those made from them.
    """

    recipes: dict[str, Recipe] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    fixed: list[str] = field(default_factory=list)
    heirs: dict[str, tuple[str, ...]] = field(default_factory=dict)


def plan_of(source: Source, config: dict[str, Any], written: Written, **facts: Any) -> Plan:
    """The plan: what is not in an FFN that was replaced is copied.

    Args:
        facts: method, settings, exact and tolerance of the plan.

    Raises:
        ValueError: the weights of an FFN are not there.
    """
    if missing := [name for name in written.heirs if name not in source.tensors]:
        raise ValueError(f"{source.directory} has no tensor {missing[0]}; upcycling needs the FFN's own weights")
    kept = [name for name in source.tensors if name not in written.heirs]
    buffers = tuple(name for name in kept if not source.anatomy.parameters_from(name))
    stack = tuple(Slot(block) for block in range(source.blocks.num_blocks))
    blocks, rounds = grow_map(stack, source.expansion, source.blocks)

    def inherited(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(heir for name in names for heir in written.heirs.get(name, (name,)))

    return Plan(
        recipes={**{name: Recipe("copy", name) for name in kept}, **written.recipes},
        config=config,
        blocks=blocks,
        rounds=tuple(replace(one, new_parameters=inherited(one.new_parameters)) for one in rounds),
        new_parameters=tuple(written.new),
        module_parameters=tuple(dict.fromkeys(written.new.values())),
        fixed_parameters=(*source.expansion.fixed_parameters, *written.fixed),
        buffers=buffers,
        stack=stack,
        **facts,
    )
