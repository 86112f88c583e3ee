"""What a base model's config.json tells before anything is fetched, for requests to be checked against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.engine.errors import ConfigError
from pipeline.engine.locations import local_path

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # in the config.json of one family or another
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")  # likewise
SHAPE = "shape"  # of a model that is not fetched yet: for estimates, not for what is built


def depth(config: Mapping[str, Any]) -> int | None:
    """How many blocks a config.json states, under the name that its family has for it."""
    section = config.get("text_config") or config
    return next((section[key] for key in DEPTH_KEYS if key in section), None)


def longest(config: Mapping[str, Any]) -> int | None:
    """How many positions a config.json states, under the name that its family has for it."""
    section = config.get("text_config") or config
    return next((section[key] for key in LENGTH_KEYS if key in section), None)


def known_facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the base model before anything is fetched; read from its files where it is local."""
    facts = {key: model.get(key) for key in ("num_blocks", "max_position_embeddings", SHAPE)} | {"expanded": False}
    facts["chat_template"] = None  # not known
    source = model["source"]
    if source.get("kind") == "local":
        directory = local_path(source.get("path"), "model.source.path")
        file = directory / "config.json"
        if not file.is_file():
            found = "no such directory" if not directory.is_dir() else "no config.json in it"
            raise ConfigError(f"model.source.path={directory}: {found}; give a directory that save_pretrained wrote")
        try:
            config = json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(f"model.source.path: {file} is damaged: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"model.source.path: {file} holds {type(config).__name__}; it must hold a JSON object")
        facts["num_blocks"] = facts["num_blocks"] or depth(config)
        facts["max_position_embeddings"] = facts["max_position_embeddings"] or longest(config)
        facts["expanded"] = (directory / "expansion.json").is_file()
        facts["local_model"] = str(directory)
        facts["chat_template"] = _has_chat_template(directory)
    return facts


def _has_chat_template(directory: Path) -> bool:
    """Whether a tokenizer brings a chat template: in files of its own, or in its config."""
    files = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    if any((directory / name).exists() for name in files):
        return True
    try:
        return bool(json.loads((directory / "tokenizer_config.json").read_text()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False
