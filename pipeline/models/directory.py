"""A model directory beside its weights: config, tokenizer and other files, and the record of its expansion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.file_io import sync
from pipeline.models.architecture.aliases import untied
from pipeline.models.files.atomic_io import commit, partial_of, write_text
from pipeline.models.files.reference import OWN_FILE, REFERENCE_FILE, write_reference
from pipeline.models.files.safetensors_io import INDEX_FILE, read_index, write_shards
from pipeline.models.files.tensor_file import Planned, Stored, copy_of
from pipeline.records.expansion import EXPANSION_FILE, expansion_text

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
"""A model's card, which is about no model that is made of it."""
CHAT_TEMPLATES = "additional_chat_templates"
"""transformers' folder of named chat templates."""
SIDE_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "chat_template.json", "vocab.json",
)  # fmt: skip
"""JSON objects that may stand beside a model's weights."""
Form = Literal["full", "delta"]
FORMS = ("full", "delta")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def read_config(directory: Path) -> dict:
    """`config.json` of a model directory.

    Raises:
        ValueError: missing or damaged.
    """
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise ValueError(
            f"{directory} has no config.json; a model directory needs config.json, weights and a tokenizer"
        )
    return read_object(file, "download or save the model again")


def read_object(file: Path, remedy: str, encoding: str = "utf-8") -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError if it is damaged or holds something else."""
    try:
        found = json.loads(file.read_text(encoding))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds {type(found).__name__}, and must hold a JSON object; {remedy}")
    return found


def check_side_files(directory: Path) -> None:
    """Look at the JSON files and templates beside the weights. Raises ValueError naming the one that is damaged."""
    for name in SIDE_FILES:
        if (file := directory / name).is_file():
            found = read_object(file, "copy the model's again")
            if name == "tokenizer.json" and "model" not in found:
                raise ValueError(f"{file} holds no tokenizer: it has no key 'model'; copy the model's again")
    for file in [directory / "chat_template.jinja", *(directory / CHAT_TEMPLATES).glob("*.jinja")]:
        if file.is_file():
            try:
                file.read_text("utf-8")
            except ValueError as error:
                raise ValueError(f"{file} is damaged: {error}; copy the model's again") from error


def copy_side_files(source: Path, target: Path, leave_out: Collection[str] = ()) -> None:
    """Everything small that belongs to a model except its weights: tokenizer, templates, licence, and last the config.

    Args:
        source: a model directory.
        target: is created.
        leave_out: names of files that the target gets from elsewhere.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir(), key=lambda file: (file.name == CONFIG_FILE, file.name)):
        is_weight = file.suffix in _WEIGHT_SUFFIXES or file.name.endswith((".index.json", ".partial"))
        ours = is_weight or file.name.startswith(".") or file.name in (REFERENCE_FILE, *leave_out)
        if file.is_file() and not ours:
            shutil.copyfile(file, partial_of(target / file.name))
            commit(target / file.name)
    if (templates := source / CHAT_TEMPLATES).is_dir():
        shutil.copytree(templates, target / CHAT_TEMPLATES, dirs_exist_ok=True)


def copy_card(source: Path, target: Path) -> None:
    """Take a model's card along to a directory that holds the same model, if it has one."""
    if (source / CARD_FILE).is_file():
        shutil.copyfile(source / CARD_FILE, target / CARD_FILE)


def begin_model(source: Path, target: Path, reads: Iterable[Path] = ()) -> None:
    """Make `target` a directory that nothing takes for a model, with the tokenizer and such of `source`, but its card.

    A model that was there, or the remains of a writing that was killed, are removed, the config first.

    Args:
        source: a model directory.
        target: is created.
        reads: files that the new model is made from, or refers to.

    Raises:
        ValueError: one of them would be removed.
    """
    if target.resolve() in {source.resolve(), *(file.resolve().parent for file in reads)}:
        raise ValueError(f"{target} holds weights that the new model is made from; write it to another directory")
    target.mkdir(parents=True, exist_ok=True)
    weights = [*target.glob("model*.safetensors"), *target.glob("*.safetensors.partial"), target / OWN_FILE]
    for file in (target / CONFIG_FILE, target / REFERENCE_FILE, target / INDEX_FILE, target / EXPANSION_FILE, *weights):
        file.unlink(missing_ok=True)
    copy_side_files(source, target, leave_out=(CONFIG_FILE, EXPANSION_FILE, CARD_FILE))


def write_weights(
    target: Path, tensors: Mapping[str, Planned], shard_bytes: int = 5 * 10**9, save: Form = "full"
) -> list[Path]:
    """Write the weights of a model: all of them, or those that are not copies, with references for those that are.

    Raises:
        ValueError: `save` is not known, or a source file is damaged.
    """
    if save not in FORMS:
        raise ValueError(f"save={save!r} is not known; use one of {', '.join(FORMS)}")
    return write_reference(target, tensors) if save == "delta" else write_shards(target, tensors, shard_bytes)


def commit_model(target: Path, config: str, expansion: str | None) -> None:
    """Write the texts of expansion.json and, last, of config.json, without which nothing loads the directory."""
    if expansion is not None:
        write_text(target / EXPANSION_FILE, expansion)
    sync(target)
    write_text(target / CONFIG_FILE, config)
    sync(target)


def materialise(directory: Path, target: Path, shard_bytes: int = 5 * 10**9) -> None:
    """Write a model, in whichever form it is, as a plain `save_pretrained` directory that needs no other.

    Args:
        directory: a model directory.
        target: is created; a model in it is replaced.
        shard_bytes: the largest shard, bytes.

    Raises:
        ValueError: the model is incomplete, or what it refers to changed.
    """
    rewrite(directory, target, as_copies(read_index(directory)), shard_bytes)
    copy_card(directory, target)


def write_untied(directory: Path, target: Path) -> None:
    """Write a model by reference to another, or over its own config, with a config that ties nothing."""
    config = untied((directory / CONFIG_FILE).read_text())
    if directory == target:
        write_text(target / CONFIG_FILE, config)
    else:
        rewrite(directory, target, as_copies(read_index(directory)), save="delta", config=config)
        copy_card(directory, target)


def rewrite(
    source: Path,
    target: Path,
    tensors: Mapping[str, Planned],
    shard_bytes: int = 5 * 10**9,
    save: Form = "full",
    config: str | None = None,
) -> None:
    """Write a model of the same record and tokenizer as `source` with these weights; by default of its config too."""
    read_config(source)
    config = (source / CONFIG_FILE).read_text() if config is None else config
    begin_model(source, target, {p.content.file for p in tensors.values() if isinstance(p.content, Stored)})
    write_weights(target, tensors, shard_bytes, save)
    commit_model(target, config, expansion_text(source))


def as_copies(tensors: Mapping[str, Stored]) -> dict[str, Planned]:
    """A plan that writes stored tensors as they are."""
    return {name: copy_of(stored) for name, stored in tensors.items()}
