"""How the blocks of a model run while it trains: which activations are kept, and whether they are compiled.

Neither changes a result beyond the order of float sums; keeping less (in eager mode, on one machine) changes no bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from pipeline.models.architecture.blocks import decoder_blocks, stream_of

CHECKPOINTING = ("off", "selective", "full")
COSTLY = (
    "aten.mm", "aten.addmm", "aten._grouped_mm",
    "llama_pro.document_attention", "flash_attn._flash_attn_varlen_forward",
    "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention",
)  # fmt: skip
"""Operators whose results `selective` keeps: matrix products and attention. What it recomputes is elementwise."""

WORTH_COMPILING_FLOPS = 1e14
"""A quarter of an hour of two slow cores: compiling for a CPU takes them a minute and saves a part of each step."""


def prepare_blocks(model: Any, checkpointing: str, compiled: bool) -> None:
    """Let each decoder block recompute its activations in the backward pass as `checkpointing` says, and compile it.

    Activations of a block are kept only if a gradient passes through it, so none below the first block that trains. The
    blocks above it recompute whether they train or not: a frozen block that a gradient passes through keeps as much as
    one that learns (a rule that checkpoints the trainable blocks alone, as LLaMA-Factory's, misses most of it).

    Args:
        model: a transformers causal language model whose `requires_grad` are final, adapters included.
        checkpointing: "off"; "selective": keep matrix products and attention, recompute the elementwise rest; "full":
            keep the input of a block only.
        compiled: compile each block by itself with torch.compile, for the shapes that it meets.

    Raises:
        ValueError: an unknown policy, or no list of blocks is found in the model.
    """
    if checkpointing not in CHECKPOINTING:
        raise ValueError(f"checkpointing={checkpointing!r} is not known; use one of {', '.join(CHECKPOINTING)}")
    if checkpointing == "off" and not compiled:
        return
    if compiled:
        # One graph for each combination of trained or frozen, with and without a gradient, whole and last micro batch.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in _blocks(model):
        forward = block.forward
        # What selective keeps is chosen operator by operator, which a compiled block does inside its own graph.
        if checkpointing == "selective":
            forward = _recomputed(block, forward, _selective_contexts)
        if compiled:
            # A kernel for each shape, not one for all: the bits of a step then depend on that step alone.
            forward = torch.compile(forward, dynamic=False)
        if checkpointing == "full":
            forward = _recomputed(block, forward)
        block.forward = forward


def _blocks(model: Any) -> Any:
    try:
        return decoder_blocks(model)
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__} has no one list of its blocks, so they can neither recompute nor be compiled; "
            "set launch.checkpointing=off and launch.compile=false"
        ) from error


def _recomputed(block: Any, forward: Callable, contexts: Callable | None = None) -> Callable:
    """`forward`, whose activations are recomputed where a gradient passes through the block."""
    trains = any(p.requires_grad for p in block.parameters())
    options = {"use_reentrant": False, **({"context_fn": contexts} if contexts else {})}

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and (trains or stream_of(args, kwargs).requires_grad):
            return checkpoint(forward, *args, **options, **kwargs)
        return forward(*args, **kwargs)

    return run


def _selective_contexts() -> Any:
    """Keep the results of those operators of `COSTLY` that this installation has."""
    names = (name.split(".") for name in COSTLY)
    packets = (getattr(getattr(torch.ops, library), operator, None) for library, operator in names)
    return create_selective_checkpoint_contexts([one.default for one in packets if one is not None])


def choose_compile(requested: bool | str, device: torch.device, num_flops: float, precision: str, wide: bool) -> bool:
    """Whether to compile the blocks: `auto` does where it pays and a compiler is at hand.

    Decided by the size of the run and not by a clock, so that a run that is resumed computes as it did before.

    Args:
        requested: true, false or "auto".
        device: where the run computes.
        num_flops: of the whole run, roughly.
        precision: fp32 or bf16; in fp32 a CPU's matrix products leave nothing to be gained.
        wide: its bf16 products are made in fp32, which compiled code does not do.

    Raises:
        ValueError: another request; or true without a compiler.
    """
    if requested not in (True, False, "auto"):
        raise ValueError(f"compile={requested!r} is not known; use true, false or auto")
    pays = device.type != "cpu" or (precision == "bf16" and not wide and num_flops >= WORTH_COMPILING_FLOPS)
    if requested is False or (requested == "auto" and not pays):
        return False
    missing = _missing_compiler(device)
    if requested is True and missing:
        raise ValueError(f"compile=true needs {missing}; install it, or use compile=auto or false")
    return not missing


def _missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks to make code for this device; None if nothing."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton (pip install triton)"
    compilers: Sequence[str] = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return None if any(shutil.which(one) for one in compilers) else "a C++ compiler (g++ or clang++, or CXX)"
