"""The shape of a decoder read off its config.json, without torch: what estimates of cost are made from.

Only families whose blocks are known here have a shape; of others nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.models.directory import CONFIG_FILE, read_config
from pipeline.records.expansion import read_expansion

GATED = {
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "granite", "stablelm",
    "cohere", "cohere2", "phi3", "smollm3", "glm", "glm4", "seed_oss", "exaone4",
}  # fmt: skip
"""Families of Llama's anatomy: attention with grouped keys, and an FFN of three matrices."""
PLAIN = {"starcoder2", "nemotron", "phi"}
"""The same with an FFN of two matrices."""
SPARSE = {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}
"""Llama's attention, and a router and experts of three matrices."""
_COUNTED_AS = ("num_local_experts", "num_experts")  # Qwen3-MoE's are published as the latter and saved as the former
TIED_UNLESS_SAID = {"gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "starcoder2"}
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Keys without which a config.json tells no shape."""


class Matrix(NamedTuple):
    """A weight that tokens are multiplied with.

    Attributes:
        stored: how many of this shape a block has; used: how many of them a token meets (fewer, for experts).
        reads_stream: its input is the normalised residual stream at the block's entry, as that of q, k and v.
        linear: it is a module of its own, which LoRA finds.
    """

    inputs: int
    outputs: int
    stored: int = 1
    used: int = 1
    reads_stream: bool = False
    linear: bool = True

    @property
    def num_used(self) -> int:
        """Parameters that a token is multiplied with."""
        return self.inputs * self.outputs * self.used

    @property
    def num_stored(self) -> int:
        """Parameters that are held."""
        return self.inputs * self.outputs * self.stored


@dataclass(frozen=True)
class Block:
    """One decoder block.

    Attributes:
        query, value: features of all query heads, and of all value heads as repeated for the queries.
        keys: features of all key heads, not repeated.
        ffn: inner features of the FFN that a token meets, over its experts.
        window: tokens that attention looks back on; None: all.
        vectors: parameters that are in no matrix: norms and biases.
        new: made by the last expansion.
    """

    matrices: tuple[Matrix, ...]
    query: int
    value: int
    keys: int
    ffn: int
    window: int | None
    vectors: int
    new: bool = False

    @property
    def num_parameters(self) -> int:
        """All that are held."""
        return sum(matrix.num_stored for matrix in self.matrices) + self.vectors


@dataclass(frozen=True)
class Shape:
    """A decoder: its blocks from the bottom, `hidden` features, and a head over `vocab` tokens."""

    blocks: tuple[Block, ...]
    hidden: int
    vocab: int
    tied: bool
    gated: bool

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied head once."""
        tables = self.hidden * self.vocab * (1 if self.tied else 2)
        return sum(block.num_parameters for block in self.blocks) + tables + self.hidden

    def grown(self, stack: Sequence[tuple[int, bool]]) -> Shape:
        """The shape after an expansion; `stack` names for each block its source and whether it is new."""
        return replace(self, blocks=tuple(replace(self.blocks[source], new=new) for source, new in stack))

    def with_new(self, positions: Collection[int]) -> Shape:
        """The same with the blocks at these positions as the new ones."""
        return replace(self, blocks=tuple(replace(b, new=i in positions) for i, b in enumerate(self.blocks)))


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json, or the part of one that bears on it, tells; None for a family not known here."""
    family = config.get("model_type")
    needed = [*NEEDED, *(["shared_expert_intermediate_size"] if family == "qwen2_moe" else [])]
    if family not in GATED | PLAIN | SPARSE or any(config.get(key) is None for key in needed):
        return None
    if family in SPARSE and _num_experts(config) is None:
        return None
    hidden, depth = config["hidden_size"], config["num_hidden_layers"]
    windows, sparse = _windows(config, depth), [_has_experts(config, index) for index in range(depth)]
    kinds = {kind: _block(config, kind) for kind in set(sparse)}
    return Shape(
        blocks=tuple(replace(kinds[kind], window=window) for kind, window in zip(sparse, windows, strict=True)),
        hidden=hidden,
        vocab=config["vocab_size"],
        tied=_tied(config),
        gated=family not in PLAIN,
    )


def read_shape(directory: Path) -> Shape | None:
    """The shape of a model directory, its new blocks marked; None for a family not known here.

    Raises:
        ValueError: its config.json is missing or damaged.
    """
    shape = shape_of(read_config(directory))
    return None if shape is None else shape.with_new(read_expansion(directory).last_positions)


def cached_config(repo: str, revision: str) -> dict[str, Any] | None:
    """The config.json of a model of the hub, if an earlier download left it on this machine."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(repo, CONFIG_FILE, revision=revision)
    return json.loads(Path(file).read_text()) if isinstance(file, str) else None


def _has_experts(config: Mapping[str, Any], index: int) -> bool:
    """Whether a block does: Qwen's families list dense ones, and have experts in every `decoder_sparse_step`-th."""
    listed, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    return config["model_type"] in SPARSE and index not in listed and (index + 1) % step == 0


def _block(config: Mapping[str, Any], sparse: bool) -> Block:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    matrices = [
        Matrix(hidden, query, reads_stream=True),
        Matrix(hidden, keys, reads_stream=True),
        Matrix(hidden, keys, reads_stream=True),
        Matrix(query, hidden),
    ]
    ffn, inner = _experts(config) if sparse else _ffn(config)
    # Two norms; what further norms and biases there are is far below a thousandth of a block.
    return Block((*matrices, *ffn), query, query, keys, inner, None, 2 * hidden)


def _experts(config: Mapping[str, Any]) -> tuple[list[Matrix], int]:
    """A router, experts, and in Qwen2-MoE one that all tokens share, behind a gate."""
    hidden, family = config["hidden_size"], config["model_type"]
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    experts, used = _num_experts(config) or 0, config.get("num_experts_per_tok", 2)
    found = [Matrix(a, b, experts, used, linear=False) for a, b in ((hidden, inner), (hidden, inner), (inner, hidden))]
    shared = config["shared_expert_intermediate_size"] if family == "qwen2_moe" else 0
    if family == "qwen2_moe":
        found += [Matrix(hidden, shared), Matrix(hidden, shared), Matrix(shared, hidden), Matrix(hidden, 1)]
    return [Matrix(hidden, experts, linear=False), *found], inner * used + shared


def _num_experts(config: Mapping[str, Any]) -> int | None:
    return next((config[key] for key in _COUNTED_AS if config.get(key) is not None), None)


def _ffn(config: Mapping[str, Any]) -> tuple[list[Matrix], int]:
    hidden, family = config["hidden_size"], config["model_type"]
    inner = config["intermediate_size"]
    into = [Matrix(hidden, inner)] * (1 if family in PLAIN else 2)
    return [*into, Matrix(inner, hidden)], inner


def _windows(config: Mapping[str, Any], depth: int) -> list[int | None]:
    """Of each block. Without `layer_types` a window that only some blocks have is left out: an upper bound."""
    window, types = config.get("sliding_window"), config.get("layer_types")
    if types:
        return [window if kind == "sliding_attention" else None for kind in types]
    everywhere = config["model_type"] in ("mistral", "mixtral", "phi3")
    return [window if everywhere else None] * depth


def _tied(config: Mapping[str, Any]) -> bool:
    stated = config.get("tie_word_embeddings")
    return config["model_type"] in TIED_UNLESS_SAID if stated is None else bool(stated)
