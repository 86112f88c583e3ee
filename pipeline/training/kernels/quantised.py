"""A frozen base in 16, 8 or 4 bits (QLoRA, arXiv 2305.14314, section 3): what does not train needs no full precision.

The linear layers of blocks that hold nothing trainable are held in fewer bits and expanded for each product, forwards
and backwards. New blocks, norms, embeddings and the head stay as they are. What is saved is the base's own tensors:
they are copied from the source, not from here. `bf16` loses nothing where the base is stored in bf16: an fp32 run then
gives the same bits in half the memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from pipeline.models.architecture.blocks import decoder_blocks

BLOCK_SIZES = {"int8": 256, "nf4": 64}  # weights that share one fp32 scale; bitsandbytes' own choice


class CompressedLinear(nn.Module, ABC):
    """A frozen linear layer, its weight held in fewer bits than it is multiplied in; `bias` is as it was, or None."""

    bias: nn.Parameter | None

    @abstractmethod
    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The expanded weight, [out, in]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`, with a gradient by x only."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return _Product.apply(x, self)


class HalfLinear(CompressedLinear):
    """Held in bf16, as `held` [out, in]."""

    held: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("held", linear.weight.detach().bfloat16())
        self.bias = linear.bias

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """See `CompressedLinear`."""
        return self.held.to(dtype)


class QuantisedLinear(CompressedLinear):
    """Held in blocks of codes with a scale each (bitsandbytes).

    Attributes:
        codes: uint8, one a weight (int8: dynamic 8-bit values) or one for two (nf4: 4-bit normal floats).
        scales: fp32, one a block of weights: 8.1 or 4.5 bits a weight in all.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    values: torch.Tensor

    def __init__(self, linear: nn.Linear, form: str) -> None:
        super().__init__()
        self.form, self.shape = form, linear.weight.shape
        codes, state = _quantise(linear.weight.detach(), form)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", state.absmax)
        self.register_buffer("values", state.code)
        self.bias = linear.bias

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """See `CompressedLinear`."""
        from bitsandbytes import functional

        size = BLOCK_SIZES[self.form]
        state = functional.QuantState(
            self.scales, self.shape, self.values, size, "nf4" if self.form == "nf4" else None, dtype
        )
        expand = functional.dequantize_4bit if self.form == "nf4" else functional.dequantize_blockwise
        return expand(self.codes, state).view(self.shape)


class _Product(torch.autograd.Function):
    """Expands the weight again in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: CompressedLinear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.weight(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad @ ctx.layer.weight(grad.dtype), None


def _quantise(weight: torch.Tensor, form: str) -> tuple[torch.Tensor, Any]:
    from bitsandbytes import functional

    size = BLOCK_SIZES[form]
    if form == "nf4":
        return functional.quantize_4bit(weight, blocksize=size, compress_statistics=False, quant_type="nf4")
    return functional.quantize_blockwise(weight, blocksize=size)


def hold_frozen(model: Any, form: str) -> int:
    """Hold the frozen blocks' linear layers of a model in `form` ("bf16", "int8" or "nf4"); how many were.

    Args:
        model: a transformers causal language model whose `requires_grad` are final, without adapters.

    Raises:
        ValueError: bitsandbytes is not installed, the model has adapters (they would be merged into rounded weights),
            or there is no frozen linear layer in a block.
    """
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError(
            f"frozen_dtype={form} is for strategy new_blocks: adapters are merged into the base in the end"
        )
    count = 0
    for block in decoder_blocks(model):
        if not any(p.requires_grad for p in block.parameters()):
            count += _replace_linears(block, form)
    if not count:
        raise ValueError(f"frozen_dtype={form} found no frozen linear layer in a block; set it to null")
    return count


def _replace_linears(module: nn.Module, form: str) -> int:
    count = 0
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, HalfLinear(child) if form == "bf16" else QuantisedLinear(child, form))
            count += 1
        else:
            count += _replace_linears(child, form)
    return count


def held_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What stands for frozen weights, such as codes and scales, by name."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, module in model.named_modules()
        if isinstance(module, CompressedLinear)
        for name, tensor in module.named_buffers()
    }
