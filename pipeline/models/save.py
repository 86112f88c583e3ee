"""Saving a trained model: what did not train is copied byte for byte, what did is cast to the dtype it had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.models.directory import copy_side_files
from pipeline.models.safetensors_io import Planned, read_index, write_shards

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def save_trained(source: Path, target: Path, trained: Mapping[str, torch.Tensor], shard_bytes: int = 5 * 10**9) -> None:
    """Write `source`'s model to `target` with the tensors in `trained` in place of the old ones.

    Args:
        source: the `save_pretrained` directory that training started from.
        target: is created.
        trained: by their names in `source`'s weights; any float dtype, same shapes.

    Raises:
        ValueError: a name or a shape that `source` does not have.
    """
    stored = read_index(source)
    unknown = sorted(set(trained) - set(stored))
    if unknown:
        raise ValueError(f"trained tensors that {source} does not store: {', '.join(unknown[:4])} ({len(unknown)})")
    tensors = {}
    for name, origin in stored.items():
        content = origin if name not in trained else _raw(name, trained[name], origin.dtype, origin.shape)
        tensors[name] = Planned(origin.dtype, origin.shape, origin.num_bytes, content)
    copy_side_files(source, target)
    write_shards(target, tensors, shard_bytes)


def _raw(name: str, tensor: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> memoryview:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"trained tensor {name} has shape {tuple(tensor.shape)}, its source has {shape}")
    flat = tensor.detach().to("cpu", DTYPES[dtype]).contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def tensor_hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sha256 of each tensor's bytes, dtype and shape."""
    import hashlib

    hashes = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
        hashes[name] = digest.hexdigest()
    return hashes
