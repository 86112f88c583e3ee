"""The model that training starts from, held beside the one that trains."""

from __future__ import annotations

import copy
from typing import Any

import torch

from pipeline.training.kernels.quantised import held_tensors


def base_copy(causal: Any, device: torch.device) -> Any:
    """A copy of a model as it stands, frozen and without dropout, on a device where the model itself is put too.

    What does not train is shared with it and not copied: beside new blocks or adapters it costs their size alone.

    Args:
        causal: a transformers causal language model whose `requires_grad` and dtypes are final, adapters in place.
    """
    causal.to(device)  # first: buffers that are moved later would be others than those shared here
    frozen = [parameter for parameter in causal.parameters() if not parameter.requires_grad]
    shared = {id(tensor): tensor for tensor in (*frozen, *held_tensors(causal).values())}
    return copy.deepcopy(causal, shared).requires_grad_(False).eval()
