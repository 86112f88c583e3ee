"""config.json of an expanded model: the depth, and everything that is said a block at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.expansion.layout import Slot

if TYPE_CHECKING:
    from pipeline.expansion.architecture_cache import Architecture

# Lists of block indices, and counts of blocks from the bottom, have no form that tells them from other numbers; these
# are transformers' names for them.
_INDEX_LISTS = (
    "mlp_only_layers", "full_attn_idxs", "moe_layers", "attn_layer_indices", "cross_attention_layers",
    "global_attention_layers", "global_attn_layers", "deepstack_layers",
)  # fmt: skip
_THRESHOLDS = ("max_window_layers", "first_k_dense_replace", "num_dense_layers", "n_dense_layers", "num_hash_layers")
_NOT_PER_BLOCK = (
    "architectures", "eos_token_id", "bos_token_id", "pad_token_id", "keys_to_ignore_at_inference", "mrope_section",
    "suppress_tokens", "begin_suppress_tokens", "mamba_expand_ratio",
)  # fmt: skip


def grow_config(config: Mapping[str, Any], stack: Sequence[Slot], anatomy: Architecture) -> dict[str, Any]:
    """The source's config.json for the new stack, each new block inheriting what is said of its origin.

    What the source leaves to a rule over indices (a sliding window in every sixth block) is written out as the list
    that transformers makes of it, because the rule would shift.

    Raises:
        ValueError: the config says something of its blocks that cannot be said of the new stack.
    """
    grown = copy.deepcopy(dict(config))
    section = grown["text_config"] if "num_hidden_layers" in grown.get("text_config", {}) else grown
    depth, key = anatomy.num_blocks, anatomy.named("num_hidden_layers")
    written = {**anatomy.text_config, **section}
    for name, value in written.items():
        if name in _NOT_PER_BLOCK or value is None:
            continue
        if name in _INDEX_LISTS and isinstance(value, list | tuple):
            section[name] = [position for position, slot in enumerate(stack) if slot.source in set(value)]
        elif isinstance(value, list | tuple) and len(value) == depth:
            section[name] = [value[slot.source] for slot in stack]
        elif name in _THRESHOLDS and isinstance(value, int) and not isinstance(value, bool):
            section[name] = _threshold(value, stack, depth)
    if (step := written.get("decoder_sparse_step") or 1) > 1:
        section["mlp_only_layers"] = _dense_blocks(written, stack, step)
        section["decoder_sparse_step"] = 1
    if "attention_types" in section:
        section["attention_types"] = [[[kind], 1] for kind in section["attention_layers"]]
    for name in {"num_hidden_layers", key} & set(section) or {key}:
        section[name] = len(stack)
    return grown


def _threshold(value: int, stack: Sequence[Slot], depth: int) -> int:
    if value >= depth:
        return value + len(stack) - depth
    # A stack that is not sorted by origin has no threshold; check_grown refuses it where it matters.
    return sum(slot.source < value for slot in stack)


def _dense_blocks(config: Mapping[str, Any], stack: Sequence[Slot], step: int) -> list[int]:
    """Blocks without experts: Qwen2-MoE has experts in each block i with (i + 1) % step == 0 that is not listed."""
    listed = set(config.get("mlp_only_layers") or [])
    return [p for p, slot in enumerate(stack) if slot.source in listed or (slot.source + 1) % step]
