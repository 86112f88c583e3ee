"""What a model is and what its training cost, from its files' headers and its manifests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.models.files.safetensors_io import read_index
from pipeline.records.expansion import read_expansion

RANDOM = "random"
"""Kind of a base's source that has no weights: they are drawn."""


@dataclass(frozen=True)
class Facts:
    """Counts of parameters (tied weights once), trained tokens, seconds and bytes; None where nothing was recorded.

    `trainable_share` is of the parameters during training, adapters included; `max_abs_difference` is that of the
    logits of an expanded model and its source, from the expansion's own proof, and `proof_note` says why that was not
    made in the source's dtype. `mfu` is the share of the device's rate of matrix products that training used for what
    it needed, `mfu_6nd` the same by the rule of 6ND. `stopped` says why a limit ended training before its time,
    `kept_step` after which step the weights were kept, if tracking chose it. `num_active` counts the parameters that
    one token meets; `flops_per_token` are those of a forward and backward pass as it trained, `tokens_per_s` its rate.
    `is_random`: its weights were drawn, and nothing trained them.
    """

    num_parameters: int | None = None
    num_new: int | None = None
    num_trainable: int | None = None
    trainable_share: float | None = None
    tokens: int | None = None
    wall_time_s: float | None = None
    peak_memory_bytes: int | None = None
    max_abs_difference: float | None = None
    proof_note: str | None = None
    mfu: float | None = None
    mfu_6nd: float | None = None
    stopped: str | None = None
    kept_step: int | None = None
    num_active: int | None = None
    flops_per_token: int | None = None
    tokens_per_s: float | None = None
    is_random: bool = False


def read_facts(directory: Path, manifest: Mapping[str, Any], training: Mapping[str, Any] | None) -> Facts:
    """Facts of the model artifact `directory`; `training` is the manifest of the stage that trained it, if any.

    Parameters are counted from the safetensors headers, so no weight is read. New parameters are those that the
    manifest or `model/expansion.json` lists by name.
    """
    model = model_directory(directory, manifest)
    sizes = tensor_sizes(model)
    own = manifest.get("metrics") or {}
    metrics = (training or {}).get("metrics") or {}
    wall_time = ((training or {}).get("provenance") or {}).get("wall_time_s")
    num_parameters = sum(sizes.values()) if sizes else _integer(own, "num_parameters")
    num_trainable = _integer(metrics, "num_trainable")
    during_training = _integer(metrics, "num_parameters") or num_parameters
    return Facts(
        num_parameters=num_parameters,
        num_new=_count_new(model, manifest, sizes),
        num_trainable=num_trainable,
        trainable_share=num_trainable / during_training if num_trainable is not None and during_training else None,
        tokens=_integer(metrics, "num_tokens"),
        wall_time_s=float(wall_time) if wall_time is not None else None,
        peak_memory_bytes=_integer(metrics, "peak_memory_bytes"),
        max_abs_difference=own.get("max_abs_difference"),
        proof_note=own.get("proof_note"),
        mfu=metrics.get("mfu"),
        mfu_6nd=metrics.get("mfu_6nd"),
        stopped=metrics.get("stopped"),
        kept_step=_integer(metrics, "kept_step"),
        num_active=_integer(metrics, "num_active") or num_parameters,
        flops_per_token=_integer(metrics, "flops_per_token"),
        tokens_per_s=metrics.get("tokens_per_s"),
        is_random=((manifest.get("params") or {}).get("source") or {}).get("kind") == RANDOM,
    )


def model_directory(directory: Path, manifest: Mapping[str, Any]) -> Path:
    """Where an artifact's weights lie: in it, or where its manifest says for a model that is used in place."""
    return directory / "model" if (directory / "model").is_dir() else Path(manifest.get("model_path") or directory)


def tensor_sizes(directory: Path) -> dict[str, int]:
    """Number of elements per tensor in a model directory; empty if it holds no safetensors files.

    Raises:
        ValueError: a file is damaged.
    """
    if not any(directory.glob("*.safetensors")):
        return {}
    return {name: math.prod(stored.shape) for name, stored in read_index(directory).items()}


def _count_new(model: Path, manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> int | None:
    names = manifest.get("new_parameters")
    if names is None and not (names := read_expansion(model).new_parameters):
        return None
    # Some models are stored under other names than their parameters have; then the count is unknown, not smaller.
    return sum(sizes[name] for name in names) if all(name in sizes for name in names) else None


def _integer(metrics: Mapping[str, Any], name: str) -> int | None:
    value = metrics.get(name)
    return int(value) if value is not None else None
