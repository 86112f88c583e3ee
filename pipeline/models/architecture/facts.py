"""What the files of a model directory tell without its weights, for requests to be checked against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.models.architecture.shape import read_shape
from pipeline.models.directory import CHAT_TEMPLATES, read_config
from pipeline.models.files.tokenizer_files import vocabulary_hash
from pipeline.records.expansion import read_expansion

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # in the config.json of one family or another
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")  # likewise


def depth(config: Mapping[str, Any]) -> int | None:
    """How many blocks a config.json states, under the name that its family has for it."""
    section = config.get("text_config") or config
    return next((section[key] for key in DEPTH_KEYS if key in section), None)


def longest(config: Mapping[str, Any]) -> int | None:
    """How many positions a config.json states, under the name that its family has for it."""
    section = config.get("text_config") or config
    return next((section[key] for key in LENGTH_KEYS if key in section), None)


def num_patches(config: Mapping[str, Any]) -> int:
    """Into how many patches a model with visual experts cuts an image; 0 for any other, which reads none here."""
    if not str(config.get("model_type")).startswith("visual_experts_"):
        return 0
    return (config["image_size"] // config["patch_size"]) ** 2


def model_facts(directory: Path) -> dict[str, Any]:
    """config (config.json), num_blocks, model_type, max_position_embeddings, shape (None: not known), chat_template
    (whether there is one), expanded (whether an expansion added parameters), vocabulary (gives a hash, which takes a
    while, or None), num_patches (see `num_patches`).

    Raises:
        ValueError: its config.json is missing or damaged.
    """
    config = read_config(directory)
    return {
        "config": config,
        "num_blocks": depth(config),
        "model_type": config.get("model_type"),
        "max_position_embeddings": longest(config),
        "shape": read_shape(directory),
        "chat_template": _has_chat_template(directory),
        "expanded": bool(read_expansion(directory).new_parameters),
        "vocabulary": partial(vocabulary_hash, directory),
        "num_patches": num_patches(config),
    }


def _has_chat_template(directory: Path) -> bool:
    """Whether a tokenizer brings a chat template: in files of its own, or in its config."""
    files = ("chat_template.jinja", "chat_template.json", CHAT_TEMPLATES)
    if any((directory / name).exists() for name in files):
        return True
    try:
        return bool(json.loads((directory / "tokenizer_config.json").read_text()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False
