"""Products of bf16 matrices on a CPU that has no bf16 products: multiplied in fp32, and the result rounded.

What torch does there instead is 7 to 70 times slower than fp32 (AVX2). Every bf16 number is an fp32 number and a bf16
unit sums in fp32 too, so both round the same sum once, and only its order differs. Everything else of a bf16 run stays
as it is: what is kept in memory, and where numbers are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NATIVE = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""Instructions that multiply bf16, as `torch.cpu.get_capabilities` names them on x86 and ARM."""

_aten = torch.ops.aten
ROUNDED: Mapping[Any, int] = {
    _aten.mm.default: 1, _aten.mm.out: 1, _aten.addmm.default: 1, _aten.bmm.default: 1, _aten.baddbmm.default: 1,
    _aten._grouped_mm.default: 1,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 1,  # what follows its result is fp32 in any case
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 3,
}  # fmt: skip
"""Operators that multiply matrices, and how many of their results, from the first, are rounded to bf16."""


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has products of bf16; of every one that is not a CPU it is assumed."""
    return device.type != "cpu" or any(torch.cpu.get_capabilities().get(name, False) for name in NATIVE)


def choose_fp32_matmul(requested: bool | str, device: torch.device, precision: str, compiled: bool | str) -> bool:
    """Whether a run multiplies bf16 matrices in fp32: `auto` does in bf16 on a CPU that cannot multiply them itself.

    Args:
        requested: true, false or "auto".
        device: where the run computes.
        precision: fp32 or bf16.
        compiled: whether compiling was asked for: true, false or "auto". Compiled code brings its own products.

    Raises:
        ValueError: another request; or true where there is nothing to widen, or with compile=true.
    """
    if requested not in (True, False, "auto"):
        raise ValueError(f"fp32_matmul={requested!r} is not known; use true, false or auto")
    if requested is True and (device.type != "cpu" or precision != "bf16" or compiled is True):
        raise ValueError(
            "fp32_matmul=true is for precision=bf16 on a CPU, not compiled; this run has "
            f"precision={precision} on {device.type} with compile={str(compiled).lower()}. Use fp32_matmul=auto"
        )
    if requested == "auto":
        return precision == "bf16" and compiled is not True and not multiplies_bf16(device)
    return bool(requested)


def fp32_matmul(wide: bool) -> AbstractContextManager:
    """What to train inside of, forwards and backwards; nothing happens if `wide` is false."""
    return _WideProducts() if wide else nullcontext()


class _WideProducts(TorchDispatchMode):
    """Runs the operators of `ROUNDED` in fp32 where they are given bf16, and rounds what they give."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        num_rounded = ROUNDED.get(func, 0)
        if not num_rounded or types or not _is_bf16(args[0]):
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        if out is not None:
            return out.copy_(func.overloadpacket.default(*map(_widened, args), **kwargs))
        found = func(*map(_widened, args), **kwargs)
        if isinstance(found, torch.Tensor):
            return found.bfloat16()
        return (*(one.bfloat16() for one in found[:num_rounded]), *found[num_rounded:])


def _is_bf16(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and one.dtype == torch.bfloat16 and one.device.type == "cpu"


def _widened(one: Any) -> Any:
    return one.float() if _is_bf16(one) else one
