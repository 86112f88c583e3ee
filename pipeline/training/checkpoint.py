"""Checkpoints: trainable weights, optimizer state and a JSON state, each complete or absent. No pickle.

A checkpoint is a directory `step-<n>` written under another name, fsynced and renamed, so that a crash while writing
leaves the one before it. Frozen tensors are not in it: they are in the model that training started from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.models.durable import sync

_PREFIX = "step-"


def save_checkpoint(
    folder: Path,
    step: int,
    trainable: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int = 2,
) -> None:
    """Write `folder/step-<step>` atomically and delete all but the newest `keep`.

    Args:
        trainable: parameters by name, as the optimizer holds them.
        state: plain JSON data.
    """
    final = folder / f"{_PREFIX}{step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({n: p.detach().cpu().contiguous() for n, p in trainable.items()}, partial / "trainable.safetensors")
    save_file(_optimizer_tensors(trainable, optimizer), partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step, **state}))
    for file in partial.iterdir():
        sync(file)
    sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync(folder)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, trainable: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Put the newest checkpoint's tensors into parameters and optimizer, and return its state; None if there is none.

    Raises:
        ValueError: the checkpoint belongs to other parameters.
    """
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    weights = load_file(newest / "trainable.safetensors")
    moments = load_file(newest / "optimizer.safetensors")
    if set(weights) != set(trainable):
        odd = sorted(set(weights) ^ set(trainable))
        raise ValueError(f"{newest} holds other parameters than those that train: {', '.join(odd[:4])} ({len(odd)})")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(weights[name])
            kept = {
                key: moments[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in moments
            }
            if kept:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device if key != "step" or value.ndim else "cpu").clone()
                    for key, value in kept.items()
                }
    return json.loads((newest / "state.json").read_text())


def _optimizer_tensors(
    trainable: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for name, parameter in trainable.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir())
