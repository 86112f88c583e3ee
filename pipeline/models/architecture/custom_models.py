"""The architectures that transformers lacks, and models of any without weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MODULES = {"soft_moe_": "soft_moe", "calm_": "calm", "scale_": "scale", "visual_experts_": "visual_experts"}
"""By how their `model_type` begins."""


def custom_module(model_type: object) -> str | None:
    """The module that makes an architecture of ours known to transformers' Auto classes; None for any other.

    Args:
        model_type: as config.json says it.
    """
    found = [
        module for start, module in _MODULES.items() if isinstance(model_type, str) and model_type.startswith(start)
    ]
    return f"{__package__}.{found[0]}" if found else None


def register_custom_models(model_type: object) -> None:
    """Make an architecture of ours known; others cost nothing, ours take seconds: each brings four families' code."""
    if module := custom_module(model_type):
        importlib.import_module(module)


def check_adaptable(model_type: str | None, targets: str | Sequence[str]) -> None:
    """Refuse low-rank adapters that would train a part of a model widened by SCALE, and not say so.

    Args:
        model_type: as config.json says it; None: not known.
        targets: "all-linear", a pattern of names of modules, or the last parts of some.

    Raises:
        ValueError: what to do instead.
    """
    names = [] if isinstance(targets, str) else [name.rpartition(".")[2] for name in targets]
    if str(model_type).startswith("scale_") and (targets == "all-linear" or not {*names} <= {"new", "back"}):
        raise ValueError(
            f"LoRA with target_modules={targets!r} cannot train a model widened by expand=scale: its old maps read a "
            "part of their input, which no adapter does. Use strategy new_blocks or full; or adapt the maps that were "
            r"added: target_modules='.*(_proj|lm_head)\.(new|back)'"
        )


def empty_model(directory: Path) -> Any:
    """The causal language model of a model directory without its weights, on the meta device."""
    import torch
    import transformers

    register_custom_models(json.loads((directory / "config.json").read_text()).get("model_type"))
    config = transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
