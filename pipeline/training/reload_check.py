"""What a training stage saved is loaded again and must be the model that was trained, bit for bit.

The trained model is rounded to the dtypes in which its files hold it, its loss on a few rows and the hash of each of
its tensors are kept, its memory is given back, and what was written is loaded by the door that everyone uses, prepared
in the same way (dtypes, frozen_dtype, attention kernel, device) and asked for the same. One model is in memory at a
time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.models import load
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import Stored, read_pieces
from pipeline.models.save import raw_bytes, stored_dtypes, tensor_hashes
from pipeline.training.kernels.document_separation import IGNORED
from pipeline.training.kernels.experts import cast_experts
from pipeline.training.kernels.quantised import hold_frozen
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.runtime import Row, RowStream

NUM_ROWS = 2
NUM_TOKENS = 64
"""Tokens of a row behind its first label that are kept: enough for every tensor to affect the loss."""


@dataclass(frozen=True)
class Conditions:
    """What both models are held equal in.

    Attributes:
        rows: on which the loss is computed.
        dtype: in which the source was loaded, and what was saved will be.
        precision: fp32 or bf16, in which matrices are multiplied.
        frozen_dtype: as in the settings.
        device: where the trained model lies.
        one_row: see `PackedLoss`, as `apart`.
        apart: one document a row.
    """

    rows: Sequence[Row]
    dtype: torch.dtype
    precision: str
    frozen_dtype: str | None
    device: torch.device
    one_row: bool
    apart: bool


@dataclass(frozen=True)
class Trained:
    """What is kept of the model in memory.

    Attributes:
        loss: summed over the rows' labels; None where two computations of it differ, as some kernels of a GPU do.
        hashes: of its parameters and persistent buffers, by name.
        forms: (dtype, whether it trained) of each parameter.
        attention: the implementation by transformers' name.
    """

    loss: torch.Tensor | None
    hashes: Mapping[str, str]
    forms: Mapping[str, tuple[torch.dtype, bool]]
    attention: str


def check_rows(stream: RowStream, validation: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The shortest rows with labels of validation, else a few of training; the stream is put back to where it stood."""
    found = [row for row in chain.from_iterable(validation.values()) if _has_labels(row)]
    if not found:
        state = stream.state_dict()
        found = list(stream.batch(NUM_ROWS))
        stream.load_state_dict(state)
    return [_cut(row) for row in sorted(found, key=_stop)[:NUM_ROWS]]


def check_bytes(directory: Path, written: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError where a file does not hold the trained tensors, by their names there, in its dtype."""
    stored = read_index(directory)
    wrong = [name for name, tensor in written.items() if name not in stored or not _holds(stored[name], tensor)]
    if wrong:
        raise ValueError(f"{directory} does not hold what was trained: {_some(wrong)} differ; nothing was kept")


def remember(model: Any, trained: Mapping[str, torch.Tensor], stored: Mapping[str, Stored], how: Conditions) -> Trained:
    """Round what trained to the dtypes of the files, in place, and keep what the reloaded model is compared with.

    Args:
        model: the trained model without adapters or wrappers.
        trained: its parameters that trained, by name.
        stored: the tensors of the directory that it was loaded from.
        how: what the reloaded model will be held equal in.
    """
    dtypes = stored_dtypes(model, trained, stored)
    for name, parameter in model.named_parameters():
        for dtype in (*dtypes[name], how.dtype) if name in trained else ():
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    forms = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    loss = _loss(model, how)
    repeats = how.device.type == "cpu" or torch.equal(loss, _loss(model, how))
    return Trained(loss if repeats else None, _hashes(model), forms, model.config._attn_implementation)


def release(model: nn.Module, optimizer: Any) -> None:
    """Give back the memory of a model and of its optimizer's state; neither can be used again."""
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.state.clear()
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.grad = None
        tensor.data = tensor.data.new_empty(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_reloaded(directory: Path, trained: Trained, how: Conditions) -> None:
    """Load what was saved; raise ValueError where a tensor or the loss differs from the trained model's in any bit."""
    model = _reloaded(directory, trained, how)
    loss, hashes = _loss(model, how), _hashes(model)
    differ = sorted(
        name for name in hashes.keys() | trained.hashes.keys() if hashes.get(name) != trained.hashes.get(name)
    )
    if differ:
        raise ValueError(
            f"the model saved in {directory} is not the one that was trained: {_some(differ)} differ when it is loaded "
            "again. It is not kept; please report this with the model's config.json and the names that its files store"
        )
    if trained.loss is not None and not torch.equal(loss.nan_to_num(), trained.loss.nan_to_num()):
        raise ValueError(
            f"the model saved in {directory} has a loss of {loss.item():.9g} where the trained one has "
            f"{trained.loss.item():.9g}, though all tensors are equal: its config.json is not that of the trained "
            "model. It is not kept; please report this with that file"
        )


def _reloaded(directory: Path, trained: Trained, how: Conditions) -> Any:
    """The saved model in the form that the trained one has in memory."""
    model = load(directory, dtype=how.dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained.forms.get(name, (None, False))[1])
    if how.frozen_dtype:
        hold_frozen(model, how.frozen_dtype)
    for name, parameter in model.named_parameters():
        if name in trained.forms:
            parameter.data = parameter.data.to(trained.forms[name][0])
    if model.config._attn_implementation != trained.attention:
        model.set_attn_implementation(trained.attention)
    return model.to(how.device)


@torch.no_grad()
def _loss(model: Any, how: Conditions) -> torch.Tensor:
    """Summed over the labels of the rows, from the logits that the model itself makes; nothing is compiled."""
    model.eval()
    cast_experts(model)
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.data_ptr() % 64:
            # Mapped files put tensors at any address, and matrix kernels sum in an order that depends on it.
            tensor.data = tensor.data.clone()
    measure = PackedLoss(model, None, one_row=how.one_row, apart=how.apart)
    total = torch.zeros((), dtype=torch.float64, device=how.device)
    with (
        torch.compiler.set_stance("force_eager"),
        torch.autocast(how.device.type, torch.bfloat16, enabled=how.precision == "bf16"),
    ):
        for row in how.rows:
            batch = {key: torch.from_numpy(row[key][None]).to(how.device) for key in _INPUTS}
            images = {key: torch.from_numpy(row[key]).to(how.device) for key in _IMAGES if key in row}
            total += measure(**batch, **images)
    return total.cpu()


_INPUTS = ("input_ids", "labels", "position_ids")
_IMAGES = ("pixel_values",)


def _hashes(model: Any) -> dict[str, str]:
    """Of parameters, and of buffers that are saved; others may follow what was last computed."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return tensor_hashes({**dict(model.named_parameters()), **buffers})


def _holds(stored: Stored, tensor: torch.Tensor) -> bool:
    expected, done = raw_bytes(tensor, stored.dtype), 0
    if expected.nbytes != stored.num_bytes:
        return False
    for piece in read_pieces(stored):
        if piece != expected[done : done + piece.nbytes]:
            return False
        done += piece.nbytes
    return True


def _has_labels(row: Row) -> bool:
    return bool((row["labels"] != IGNORED).any())


def _stop(row: Row) -> int:
    labelled = np.flatnonzero(row["labels"] != IGNORED)
    return NUM_TOKENS + (int(labelled[0]) if len(labelled) else 0)


def _cut(row: Row) -> Row:
    if any(key in row for key in _IMAGES):  # what is cut may be an image
        return row
    return {key: row[key][: _stop(row)] for key in _INPUTS}


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])} ({len(names)})"
