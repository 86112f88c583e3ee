"""Saving a trained model: what did not train is copied byte for byte, what did is cast to the dtype it had."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.models.directory import Form, rewrite
from pipeline.models.safetensors_io import Planned, read_index

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def save_trained(
    source: Path,
    target: Path,
    trained: Mapping[str, torch.Tensor],
    shard_bytes: int = 5 * 10**9,
    save: Form = "whole",
) -> None:
    """Write `source`'s model to `target` with the tensors in `trained` in place of the old ones.

    Args:
        source: the model directory that training started from, whole or by reference.
        target: is created.
        trained: by their names in `source`'s weights; any float dtype, same shapes.
        shard_bytes: the largest shard, bytes.
        save: "whole", or "reference" to write what trained alone and refer to where the rest lies.

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
    rewrite(source, target, tensors, shard_bytes, save)


def as_stored(model: Any, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters of a loaded model by the names and in the form in which its files hold them.

    transformers joins the experts of a block into one parameter while it loads them; its files keep them apart.

    Args:
        model: as `load` gave it.
        trained: by its parameters' names; of what is joined with others in a file, all of them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, {name: tensor.detach() for name, tensor in trained.items()}))


def _raw(name: str, tensor: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> memoryview:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"trained tensor {name} has shape {tuple(tensor.shape)}, its source has {shape}")
    return raw_bytes(tensor, dtype)


def raw_bytes(tensor: torch.Tensor, dtype: str) -> memoryview:
    """The bytes of a tensor as safetensors stores them in one of its dtypes ("BF16").

    Raises:
        ValueError: torch cannot cast to it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"tensors of dtype {dtype} can be copied, not computed; known are {', '.join(DTYPES)}")
    flat = tensor.detach().to("cpu", DTYPES[dtype]).contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def tensor_hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """sha256 of each tensor's bytes, dtype and shape."""
    hashes = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
        hashes[name] = digest.hexdigest()
    return hashes
