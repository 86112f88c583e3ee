"""Saving a trained model: what did not train is copied byte for byte, what did is cast to the dtype it had."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.models.architecture.aliases import aliases, stored_name, untied
from pipeline.models.directory import CONFIG_FILE, Form, rewrite
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import Planned, Stored

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
    save: Form = "full",
    untie: bool = False,
) -> None:
    """Write `source`'s model to `target` with the tensors in `trained` in place of the old ones.

    Args:
        source: the model directory that training started from, whole or by reference.
        target: is created.
        trained: by their names in `source`'s weights; any float dtype, same shapes.
        save: "full", or "delta" to write what trained alone and refer to where the rest lies.
        untie: the model's tied tensors are two, whatever its config says (`is_untied`): the new config says so.

    Raises:
        ValueError: a name or a shape that `source` does not have, or a value that its dtype there cannot hold.
    """
    stored = read_index(source)
    unknown = sorted(set(trained) - set(stored))
    if unknown:
        raise ValueError(f"trained tensors that {source} does not store: {', '.join(unknown[:4])} ({len(unknown)})")
    tensors = {}
    for name, origin in stored.items():
        content = origin if name not in trained else _raw(name, trained[name], origin)
        tensors[name] = Planned(origin.dtype, origin.shape, origin.num_bytes, content)
    config = (source / CONFIG_FILE).read_text()
    rewrite(source, target, tensors, save=save, config=untied(config) if untie else config)


def as_stored(model: Any, trained: Mapping[str, torch.Tensor], stored: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Parameters of a loaded model by all names and in the form in which its files hold them.

    transformers joins the experts of a block into one parameter while it loads them; its files keep them apart. A
    parameter with several names in the model is written under each of those that are stored.

    Args:
        model: as `load` gave it.
        trained: by its parameters' names; of what is joined with others in a file, all of them. Tensors on the meta
            device do to find out the names and shapes.
        stored: the tensors of the directory that it was loaded from, by name.

    Raises:
        ValueError: one is stored under none of its names, or in another shape or in a dtype that holds no floats.
    """
    shared = aliases(model)
    written = _reverted(model, {name: t.detach() for name, t in trained.items() if name not in shared}, stored)
    for name in trained:
        if name in shared:
            written |= _shared_as_stored(model, shared[name], trained[name].detach(), stored)
    lost = sorted(set(written) - set(stored))
    if lost:
        raise ValueError(
            f"training would change {', '.join(lost[:4])} ({len(lost)}), which the model's files do not store: they "
            f"have {', '.join(sorted(stored)[:3])} and {max(0, len(stored) - 3)} more. Save the model again with "
            "transformers (load it, save_pretrained) and start from that"
        )
    for name, tensor in written.items():
        _check(name, tensor, stored[name])
    return written


def check_savable(source: Path, model: Any, trained: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError as `as_stored` would for parameters of a model loaded from `source`, before they are trained."""
    as_stored(model, _empty(trained), read_index(source))


def _empty(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}


def _shared_as_stored(
    model: Any, names: Sequence[str], tensor: torch.Tensor, stored: Mapping[str, Stored]
) -> dict[str, torch.Tensor]:
    """One tensor under each of its names that is stored; under the first where none is."""
    written = {found: value for name in names for found, value in _reverted(model, {name: tensor}, stored).items()}
    kept = {name: value for name, value in written.items() if name in stored}
    for dtype in sorted({stored[name].dtype for name in kept}):  # where they differ, all hold what the coarsest can
        kept = {name: value if value.is_meta else value.to(DTYPES[dtype]) for name, value in kept.items()}
    return kept or dict(list(written.items())[:1])


def _reverted(model: Any, tensors: Mapping[str, torch.Tensor], stored: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    found = revert_weight_conversion(model, dict(tensors)).items()
    return {stored_name(name, model.base_model_prefix, stored): tensor for name, tensor in found}


def stored_dtypes(
    model: Any, trained: Mapping[str, torch.Tensor], stored: Mapping[str, Stored]
) -> dict[str, tuple[torch.dtype, ...]]:
    """The dtypes in which the files hold each of a model's parameters: one, or more where it is stored under names."""
    empty = _empty(trained)
    every = {stored[name].dtype for name in as_stored(model, empty, stored)}
    if len(every) == 1:
        return dict.fromkeys(trained, tuple(DTYPES[dtype] for dtype in every))
    shared = aliases(model)
    found = {}
    for name, tensor in empty.items():
        names = {file for alias in shared.get(name, (name,)) for file in _reverted(model, {alias: tensor}, stored)}
        found[name] = tuple(DTYPES[d] for d in sorted({stored[one].dtype for one in names if one in stored}))
    return found


def _check(name: str, tensor: torch.Tensor, stored: Stored) -> None:
    if tuple(tensor.shape) != stored.shape:
        raise ValueError(f"trained tensor {name} has shape {tuple(tensor.shape)}, its source has {stored.shape}")
    if stored.dtype not in DTYPES or not DTYPES[stored.dtype].is_floating_point:
        raise ValueError(f"{name} would be trained and is stored in {stored.dtype}; float weights are required")


def _raw(name: str, tensor: torch.Tensor, stored: Stored) -> memoryview:
    _check(name, tensor, stored)
    limit = torch.finfo(DTYPES[stored.dtype]).max
    if tensor.numel() and (largest := tensor.detach().abs().max().item()) > limit and largest != float("inf"):
        raise ValueError(
            f"{name} was trained to values up to {largest:.3g}, and {stored.dtype}, in which the model is stored, ends "
            f"at {limit:.3g}; start from a copy of the model in bfloat16 or float32"
        )
    return raw_bytes(tensor, stored.dtype)


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
