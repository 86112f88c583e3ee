"""A model directory that holds only the tensors of its own and refers to another model's files for the rest.

`reference.json`: `files` {alias: path relative to the directory, size, fingerprint} and `tensors` {name: [alias, name
in that file]}. A reference to a model that is itself by reference names the files that hold the bytes, so there are no
chains to follow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.models.files.atomic_io import write_text
from pipeline.models.files.tensor_file import Planned, Stored, fingerprint, read_header, write_file

REFERENCE_FILE = "reference.json"
# Not a name that transformers looks for: a stock load of such a directory fails instead of making up the other weights.
OWN_FILE = "blocks.safetensors"


def write_reference(directory: Path, tensors: Mapping[str, Planned]) -> list[Path]:
    """Write the tensors whose content is not a stored one, and where to find the others.

    Args:
        directory: exists; files of these names in it are replaced.
        tensors: by name.

    Returns:
        The safetensors file, if there is one to write.
    """
    here = directory.resolve()
    aliases: dict[Path, str] = {}
    places: dict[str, list[str]] = {}
    own = {name: planned for name, planned in tensors.items() if not isinstance(planned.content, Stored)}
    if own:
        write_file(here / OWN_FILE, own)
        aliases[here / OWN_FILE] = "own"
    for name, planned in tensors.items():
        if isinstance(planned.content, Stored):
            file = planned.content.file.parent.resolve() / planned.content.file.name
            alias = aliases.setdefault(file, f"base-{len(aliases) + (not own)}")
            places[name] = [alias, planned.content.name]
        else:
            places[name] = ["own", name]
    files = {
        alias: {"path": os.path.relpath(file, here), "size": file.stat().st_size, "fingerprint": fingerprint(file)}
        for file, alias in aliases.items()
    }
    write_text(directory / REFERENCE_FILE, json.dumps({"files": files, "tensors": places}, indent=1) + "\n")
    return [directory / OWN_FILE] if own else []


def is_reference(directory: Path) -> bool:
    """Whether a model directory refers to another's files."""
    return (directory / REFERENCE_FILE).is_file()


def read_reference(directory: Path) -> dict[str, Stored]:
    """All tensors of a model directory by reference, wherever they lie.

    Raises:
        ValueError: a file is not where it was, or not what it was, or the reference is damaged.
    """
    record = _read(directory)
    found = {alias: _open(directory, entry) for alias, entry in record["files"].items()}
    tensors = {}
    for target, (alias, name) in record["tensors"].items():
        if name not in found.get(alias, {}):
            raise ValueError(f"{directory / REFERENCE_FILE} refers to {name} in {alias}, which does not hold it")
        tensors[target] = found[alias][name]
    return tensors


def _read(directory: Path) -> dict[str, Any]:
    file = directory / REFERENCE_FILE
    try:
        record = json.loads(file.read_text())
        for entry in record["files"].values():
            _ = entry["path"], entry["size"], entry["fingerprint"]
        for _alias, _name in record["tensors"].values():
            pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error!r}; write the model again") from error
    return record


def _open(directory: Path, entry: Mapping[str, Any]) -> dict[str, Stored]:
    file = Path(os.path.normpath(directory.resolve() / entry["path"]))
    if not file.is_file():
        raise ValueError(
            f"{directory} refers to weights in {file}, which is not there; put that model back, or keep both in "
            "the same places relative to each other (a model written whole needs no other)"
        )
    found = fingerprint(file) if file.stat().st_size == entry["size"] else f"{file.stat().st_size} bytes"
    if found != entry["fingerprint"]:
        raise ValueError(
            f"{directory} refers to weights in {file}, which changed since: expected {entry['size']} bytes with "
            f"fingerprint {entry['fingerprint'][:12]}, found {found[:12]}; restore that file, or write the model again"
        )
    return read_header(file)
