"""The architectures that transformers lacks."""

from __future__ import annotations

import importlib

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
