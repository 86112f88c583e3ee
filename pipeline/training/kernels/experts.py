"""Experts that multiply in the dtype of autocast, as linear layers do: torch's grouped products ignore autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_OF = "llama_pro_autocast_"
CAST = ("grouped_mm", "batched_mm")
"""Ways to run experts, by transformers' names, that take their weights as they are."""


def cast_experts(causal: Any) -> None:
    """Let a model's experts be cast to autocast's dtype inside of it; what is outside computes as before.

    Trainable experts are held in fp32: without this they would multiply in fp32 under bf16.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    way = getattr(causal.config.get_text_config(), "_experts_implementation", None)
    if way not in CAST:
        return
    plain = ALL_EXPERTS_FUNCTIONS[way]

    def run(experts: nn.Module, hidden_XD: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
        kind = hidden_XD.device.type
        if not torch.is_autocast_enabled(kind):
            return plain(experts, hidden_XD, *routing)
        dtype = torch.get_autocast_dtype(kind)
        return plain(_Cast(experts, dtype), hidden_XD.to(dtype), *routing)

    ALL_EXPERTS_FUNCTIONS.register(_OF + way, run)
    causal.set_experts_implementation(_OF + way)


class _Cast:
    """A module of experts whose parameters are read in another dtype; their gradients reach the module's own."""

    def __init__(self, experts: nn.Module, dtype: torch.dtype) -> None:
        self._experts, self._dtype = experts, dtype

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._experts, name)
        return found.to(self._dtype) if isinstance(found, nn.Parameter) and found.is_floating_point() else found
