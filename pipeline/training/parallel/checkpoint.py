"""Checkpoints: trainable weights, optimizer state and a JSON state, each complete or absent. No pickle.

A checkpoint is a directory `step-<n>` written under another name, fsynced and renamed, so that a crash while writing
leaves the one before it. Frozen tensors are not in it: they are in the model that training started from.

Every process writes the parts that it holds (torch.distributed.checkpoint, as safetensors with the place of each part
in its header), and reads the parts that it needs: a run goes on with another number of processes, replicated or
sharded. The processes must see one file system.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, load, save

from pipeline.file_io import sync
from pipeline.training.parallel.zero import ZeroOptimizer

_PREFIX = "step-"
_STATE = "state.json"
_MOMENT = "/"  # between the name of a parameter and that of a part of its optimizer state
_TRAINABLE = "trainable"  # key of the state where moments lie without weights: the names of all that trains
_COUNT = "step"  # the part that counts the updates of a parameter: no dimension, so not to be read in slices


def save_checkpoint(
    folder: Path,
    step: int,
    trainable: Mapping[str, torch.Tensor],
    optimizer: Any,
    state: Mapping[str, Any],
    keep: int = 2,
) -> None:
    """Write `folder/step-<step>` atomically and delete all but the newest `keep`; called by every process.

    Args:
        trainable: parameters by name, as the optimizer holds them, replicated or sharded; those of a `ZeroOptimizer`
            are gathered on every process.
        state: plain JSON data; that of the main process is kept.
    """
    if isinstance(optimizer, ZeroOptimizer):
        trainable, optimizer = optimizer.whole()
    tensors = {**{n: p.detach() for n, p in trainable.items()}, **_moments(trainable, optimizer)}
    _write(folder, step, tensors, state)
    if _is_main():
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old)
    _wait()


def save_weights(folder: Path, step: int, trainable: Mapping[str, torch.Tensor], optimizer: Any) -> None:
    """Write what trains, without moments, as `folder/step-<step>`; arguments as for `save_checkpoint`."""
    if isinstance(optimizer, ZeroOptimizer):
        trainable, _ = optimizer.whole()
    _write(folder, step, {name: p.detach() for name, p in trainable.items()}, {})


def save_moments(folder: Path, step: int, trainable: Mapping[str, torch.Tensor], optimizer: Any) -> None:
    """Write the optimizer's state alone as `folder/step-<step>`; arguments as for `save_checkpoint`.

    What no gradient reached has no state, and is named all the same.
    """
    if isinstance(optimizer, ZeroOptimizer):
        trainable, optimizer = optimizer.whole()
    _write(folder, step, _moments(trainable, optimizer), {_TRAINABLE: sorted(trainable)})


def load_moments(folder: Path, trainable: Mapping[str, torch.nn.Parameter], optimizer: Any) -> None:
    """Put what `save_moments` wrote into the optimizer; called by every process.

    Raises:
        ValueError: it is of other parameters, by name or shape.
    """
    _load(_steps(folder)[-1], trainable, optimizer)


def has_weights(folder: Path, step: int) -> bool:
    """Whether `save_weights` wrote those of a step, to the end."""
    return _directory(folder, step).is_dir()


def load_weights(folder: Path, step: int, trainable: Mapping[str, torch.nn.Parameter], optimizer: Any) -> None:
    """Put what `save_weights` wrote after a step into the parameters; called by every process.

    Raises:
        ValueError: it is not there, or belongs to other parameters.
    """
    directory = _directory(folder, step)
    if not has_weights(folder, step):
        raise ValueError(f"{directory} is missing: the weights of the best step were lost; delete {folder.parent}")
    _load(directory, trainable, optimizer)


def keep_steps(folder: Path, steps: Collection[int]) -> None:
    """Delete what is kept of other steps."""
    if _is_main():
        wanted = {_directory(folder, step) for step in steps}
        for old in set(_steps(folder)) - wanted:
            shutil.rmtree(old)
    _wait()


def _write(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    final = _directory(folder, step)
    partial = folder / f".{final.name}.partial"
    if _is_main():
        _clear(folder)
        partial.mkdir(parents=True)
    _wait()
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    with _quiet():
        save(dict(tensors), storage_writer=writer, no_dist=_alone())
    if _is_main():
        (partial / _STATE).write_text(json.dumps({"step": step, **state}))
        for path in (*partial.iterdir(), partial):
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(folder)
    _wait()


def load_checkpoint(folder: Path, trainable: Mapping[str, torch.nn.Parameter], optimizer: Any) -> dict[str, Any] | None:
    """Put the newest checkpoint's tensors into parameters and optimizer, and return its state; None if there is none.

    Called by every process.

    Raises:
        ValueError: the checkpoint belongs to other parameters.
    """
    steps = _steps(folder)
    return _load(steps[-1], trainable, optimizer) if steps else None


def _load(checkpoint: Path, trainable: Mapping[str, torch.nn.Parameter], optimizer: Any) -> dict[str, Any]:
    if isinstance(optimizer, ZeroOptimizer):
        whole, held = optimizer.whole()
        state = _read(checkpoint, whole, held)
        optimizer.put(whole, held.state)
        return state
    return _read(checkpoint, trainable, optimizer)


def _read(checkpoint: Path, trainable: Mapping[str, torch.nn.Parameter], optimizer: Any) -> dict[str, Any]:
    reader = HuggingFaceStorageReader(str(checkpoint))
    stored = reader.read_metadata().state_dict_metadata
    state = json.loads((checkpoint / _STATE).read_text())
    _check_names(
        {*(state.get(_TRAINABLE) or (key.partition(_MOMENT)[0] for key in stored))}, set(trainable), checkpoint
    )
    _check_shapes(stored, trainable, checkpoint)
    tensors: dict[str, Any] = {}
    for key, kept in stored.items():
        name, is_moment, part = key.partition(_MOMENT)
        parameter = trainable[name].detach()
        like = torch.empty(kept.size, device=parameter.device) if part == _COUNT else parameter
        tensors[key] = torch.zeros_like(like, dtype=kept.properties.dtype) if is_moment else parameter
    with _quiet():
        load(tensors, storage_reader=reader, no_dist=_alone())
    for key, tensor in tensors.items():
        name, is_moment, part = key.partition(_MOMENT)
        if is_moment:
            optimizer.state[trainable[name]][part] = _as_kept(part, tensor, optimizer)
    return state


def _moments(trainable: Mapping[str, torch.Tensor], optimizer: Any) -> dict[str, torch.Tensor]:
    """Optimizer state by parameter and part."""
    return {
        f"{name}{_MOMENT}{part}": value.detach().reshape(1) if part == _COUNT else value.detach()
        for name, parameter in trainable.items()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def _as_kept(part: str, tensor: torch.Tensor, optimizer: Any) -> torch.Tensor:
    """The form in which torch's AdamW holds a part: a fused one counts steps where the parameters are."""
    if part != _COUNT:
        return tensor
    fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return tensor.reshape(()) if fused else tensor.reshape(()).cpu()


def _check_names(found: set[str], wanted: set[str], checkpoint: Path) -> None:
    if odd := sorted(found ^ wanted):
        raise ValueError(
            f"{checkpoint} holds other parameters than those that train: {', '.join(odd[:4])} ({len(odd)})"
        )


def _check_shapes(stored: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    shapes = {key: tuple(kept.size) for key, kept in stored.items() if not key.endswith(f"{_MOMENT}{_COUNT}")}
    if odd := [key for key, shape in shapes.items() if shape != tuple(wanted[key.partition(_MOMENT)[0]].shape)]:
        name = odd[0].partition(_MOMENT)[0]
        raise ValueError(
            f"{checkpoint} holds {name} of shape {list(shapes[odd[0]])}, and here it has {list(wanted[name].shape)}"
        )


def _clear(folder: Path) -> None:
    """Remove what was being written when an earlier process was killed."""
    for left in folder.glob(f".{_PREFIX}*.partial"):
        shutil.rmtree(left)


def _directory(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step:08d}"


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that a run of one process is one of one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def _is_main() -> bool:
    return _alone() or dist.get_rank() == 0


def _wait() -> None:
    if not _alone():
        dist.barrier()
