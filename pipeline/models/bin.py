"""Checkpoints of before safetensors (`pytorch_model.bin`), converted once and without running what a pickle can run.

python -m pipeline.models.bin OLD_DIRECTORY NEW_DIRECTORY
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch

from pipeline.file_io import sync
from pipeline.models.architecture.aliases import tied_names
from pipeline.models.directory import CONFIG_FILE, begin_model, commit_model, copy_card, read_config
from pipeline.models.files.safetensors_io import read_weight_map, shard_names, write_index
from pipeline.models.files.tensor_file import Planned, write_file
from pipeline.models.save import DTYPES, raw_bytes

_SINGLE_BIN = "pytorch_model.bin"
_BIN_INDEX = "pytorch_model.bin.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def convert_bin(directory: Path, target: Path) -> None:
    """Write the model in `directory` to `target` with the same tensors as safetensors, one shard at a time.

    Of tensors that transformers ties one is kept; other tensors that share memory are written out each.

    Args:
        directory: holds config.json and `pytorch_model.bin`, or its shards with their index.
        target: is created; a model in it is replaced.

    Raises:
        ValueError: a file is missing, damaged, or a pickle of more than tensors, which is refused unread.
    """
    read_config(directory)
    shards, tied = _bin_files(directory), tied_names(directory)
    begin_model(directory, target, shards)
    weight_map: dict[str, str] = {}
    total = 0
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        tensors = _planned(_load(shard), tied, shard)
        if twice := sorted(set(tensors) & set(weight_map)):
            raise ValueError(f"{shard} and {weight_map[twice[0]]} both hold {twice[0]}; download the model again")
        write_file(target / name, tensors)
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(planned.num_bytes for planned in tensors.values())
    if len(shards) > 1:
        write_index(target, weight_map, total)
    sync(target)
    commit_model(target, (directory / CONFIG_FILE).read_text(), None)
    copy_card(directory, target)


def _bin_files(directory: Path) -> list[Path]:
    names = [_SINGLE_BIN]
    index = directory / _BIN_INDEX
    if not (directory / _SINGLE_BIN).is_file() and index.is_file():
        names = sorted(set(read_weight_map(index).values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ValueError(f"{directory} has no {', '.join(missing)}; download the missing files")
    return [directory / name for name in names]


def _load(file: Path) -> dict[str, torch.Tensor]:
    try:
        # Files of before torch 1.6 are no archives and cannot be mapped.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        raise ValueError(
            f"{file} is refused: it is a pickle of more than tensors ({str(error).splitlines()[0]}) and could run "
            "code. Get the model as safetensors from a source that you trust"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}); download it again") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} holds a {type(state).__name__}; a plain state dict is required")
    strange = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(f"{file} holds {strange[0]!r}, which is not a tensor; a plain state dict is required")
    return dict(state)


def _planned(state: dict[str, torch.Tensor], tied: Mapping[str, str], file: Path) -> dict[str, Planned]:
    planned = {}
    for name, tensor in state.items():
        kept = tied.get(name)
        if kept in state and torch.equal(state[kept], tensor):
            continue
        dtype = _NAMES.get(tensor.dtype)
        if dtype is None or tensor.layout != torch.strided:
            raise ValueError(f"{file} holds {name} as {tensor.dtype} ({tensor.layout}), which safetensors cannot store")
        num_bytes = tensor.numel() * tensor.element_size()
        content = partial(_bytes_of, tensor, dtype)
        planned[name] = Planned(dtype, tuple(tensor.shape), num_bytes, content)
    return planned


def _bytes_of(tensor: torch.Tensor, dtype: str) -> tuple[memoryview]:
    return (raw_bytes(tensor, dtype),)


def main() -> None:
    """Convert a directory named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.models.bin", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="the model with pytorch_model.bin")
    parser.add_argument("target", type=Path, help="where to write it with model.safetensors")
    arguments = parser.parse_args()
    try:
        convert_bin(arguments.directory, arguments.target)
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
