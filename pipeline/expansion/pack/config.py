"""What a base's config.json says of how it computes: beside the weights, what a pack is pinned to.

Blocks that were trained on one rotary base or activation do not do their work on another, and no tensor tells them
apart.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.models.architecture.custom_models import register_custom_models

_WITHOUT_MEANING = {
    "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "auto_map", "id2label", "label2id",
    "problem_type", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",
    "keys_to_ignore_at_inference", "name_or_path", "num_nextn_predict_layers",
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "residual_dropout",
}  # fmt: skip


def pinned_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that bears on what is computed: without ids of tokens, versions, names, and dropout."""
    kept = {
        key: pinned_config(value) if isinstance(value, Mapping) else copy.deepcopy(value)
        for key, value in config.items()
        if key not in _WITHOUT_MEANING and not key.startswith("_") and not key.endswith(("_token_id", "_token_ids"))
    }
    return {key: value for key, value in kept.items() if value is not None}


def differing(pinned: Mapping[str, Any], config: Mapping[str, Any], num_blocks: int) -> dict[str, tuple[Any, Any]]:
    """By dotted name, what a pack was pinned to and what a base says, where these differ.

    Both are read by the installed transformers first: a key that is left out means its default, and one that was
    renamed since is the same. What is said a block at a time is left to `Stack`, which asks it of the pack's blocks.
    """
    one, other = (dict(_flat(pinned_config(_read(said)))) for said in (pinned, pinned_config(config)))
    names = {*one, *other}
    lists = {name for name in names if any(_is_per_block(side.get(name), num_blocks) for side in (one, other))}
    return {n: (one.get(n), other.get(n)) for n in sorted(names - lists) if one.get(n) != other.get(n)}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    import transformers

    settings = copy.deepcopy(dict(config))
    model_type = settings.pop("model_type")
    register_custom_models(model_type)
    return transformers.AutoConfig.for_model(model_type, **settings).to_dict()


def _flat(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", list(value) if isinstance(value, tuple) else value


def _is_per_block(value: Any, num_blocks: int) -> bool:
    return isinstance(value, list) and len(value) == num_blocks
