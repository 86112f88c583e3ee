"""A model directory beside its weights: config, tokenizer and other files, and the record of its expansion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.models.safetensors_io import read_index

EXPANSION_FILE = "expansion.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def read_config(directory: Path) -> dict:
    """`config.json` of a model directory.

    Raises:
        ValueError: missing or damaged.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{directory} has no config.json; a model directory needs config.json, weights and a tokenizer"
        )
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds files of a tokenizer."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def check_directory(directory: Path) -> None:
    """Look at a model directory without loading it: config, tokenizer, and every shard's header and length.

    Raises:
        ValueError: what is missing or damaged, and what to do.
    """
    read_config(directory)
    if not has_tokenizer(directory):
        raise ValueError(
            f"{directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the model's"
        )
    read_index(directory)


def copy_side_files(source: Path, target: Path) -> None:
    """Everything small that belongs to a model except its weights and its config: tokenizer, templates, licence."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        is_weight = file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(".index.json")
        if file.is_file() and not is_weight and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)


def read_expansion(directory: Path) -> dict:
    """The record of what an expansion added: `{"new_parameters": [...], "blocks": [...]}`; empty lists if nothing."""
    file = directory / EXPANSION_FILE
    return json.loads(file.read_text()) if file.is_file() else {"new_parameters": [], "blocks": []}
