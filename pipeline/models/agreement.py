"""Whether a model directory can be loaded, and its config.json is that of its weights, told without loading it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.models.architecture.custom_models import custom_module
from pipeline.models.architecture.shape import GATED, PLAIN, SPARSE
from pipeline.models.directory import check_side_files, read_config
from pipeline.models.files.safetensors_io import has_only_pickles, read_index
from pipeline.models.files.tensor_file import Stored
from pipeline.models.files.tokenizer_files import check_tokenizer
from pipeline.records.expansion import read_expansion, split_name

_FLOATS = ("F64", "F32", "F16", "BF16")
"""Weights in other forms are packed, and their shapes are others."""
_SIZES = {
    "model.embed_tokens.weight": ("vocab_size", "hidden_size"),
    "model.norm.weight": ("hidden_size",),
    "model.layers.0.mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
}
"""By the name of a tensor, the keys that state its shape in the families of `shape`."""
_HEADS = {"q_proj": ("num_attention_heads",), "k_proj": ("num_key_value_heads", "num_attention_heads")}
"""Projections of attention, and the keys of which the first that is given counts their heads."""
_REMEDY = "put the config.json of these weights back, or the weights of this config"


def check_directory(directory: Path) -> None:
    """Look at a model directory without loading it: config, tokenizer, the other small files, every shard's header and
    length, and whether the config is that of the weights.

    Of checkpoints that are pickles the weights are not looked at. Imports no torch.

    Raises:
        ValueError: what is missing, damaged or of another model, and what to do.
    """
    config = read_config(directory)
    check_known(directory, config.get("model_type"))
    check_tokenizer(directory)
    check_side_files(directory)
    if not has_only_pickles(directory):
        check_agreement(directory, config, read_index(directory))


def check_known(directory: Path, model_type: object) -> None:
    """Refuse an architecture that neither transformers nor this project has.

    Raises:
        ValueError: with the nearest names.
    """
    if custom_module(model_type) or (isinstance(model_type, str) and (_models() / model_type).is_dir()):
        return
    if model_type not in (known := _known_types()):
        close = difflib.get_close_matches(str(model_type), known, n=3)
        guess = f"did you mean {' or '.join(close)}?" if close else "use a model of an architecture that it has"
        raise ValueError(
            f"{directory}/config.json says model_type={model_type!r}, which the installed transformers does not know; "
            f"{guess}"
        )


def check_agreement(directory: Path, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
    """Refuse a config.json of other sizes, or another depth, than the weights or the record of the expansion have.

    Families whose tensors have other names than Llama's are not looked at.

    Raises:
        ValueError: key, what it says, and what the weights have.
    """
    if config.get("model_type") not in GATED | PLAIN | SPARSE:
        return
    _check_depth(directory, config, stored)
    for name, keys in _SIZES.items():
        if (tensor := stored.get(name)) and tensor.dtype in _FLOATS:
            for key, found in zip(keys, tensor.shape, strict=True):
                _compare(directory, key, config.get(key), found, name, tensor)
    for part, keys in _HEADS.items():
        name = f"model.layers.0.self_attn.{part}.weight"
        counted = next((one for one in keys if config.get(one) is not None), None)
        if counted and (tensor := stored.get(name)) and tensor.dtype in _FLOATS:
            head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            _compare(directory, counted, config[counted], tensor.shape[0] / head, name, tensor)


def _compare(directory: Path, key: str, stated: Any, found: float, name: str, tensor: Stored) -> None:
    if isinstance(stated, int) and stated != found:
        shape = " x ".join(map(str, tensor.shape))
        raise ValueError(
            f"{directory}/config.json says {key}={stated}, but its weights have {found:g} ({name} is {shape}); "
            f"{_REMEDY}"
        )


def _check_depth(directory: Path, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> None:
    depth, further = config.get("num_hidden_layers"), config.get("num_nextn_predict_layers") or 0
    if depth is None:
        return
    places = [place for name in stored if name.startswith("model.layers.") and (place := split_name(name))]
    found = max((number for _, number in places), default=-1) + 1
    if places and not depth <= found <= depth + further:
        raise ValueError(
            f"{directory}/config.json says num_hidden_layers={depth}, but its weights have {found} blocks; {_REMEDY}"
        )
    last = max((block.position for block in read_expansion(directory).blocks), default=-1)
    if last >= depth:
        raise ValueError(
            f"{directory}/expansion.json tells of a block {last}, counted from 0, but config.json says "
            f"num_hidden_layers={depth}; {_REMEDY}, or remove expansion.json to take the model as one not grown"
        )


def _models() -> Path:
    spec = find_spec("transformers")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "models"


@cache
def _known_types() -> list[str]:
    """Every `model_type` that a class of transformers declares; its own list cannot be had without importing torch."""
    declared = re.compile(r'^\s+model_type(?:: str)? = "([^"]+)"', re.M)
    files = sorted(_models().glob("*/configuration_*.py"))
    return sorted({kind for file in files for kind in declared.findall(file.read_text(encoding="utf-8"))})
