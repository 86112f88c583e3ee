"""How fast this device multiplies matrices at best: what utilisation is a share of."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache

import torch

TERA = 1e12
DENSE_BF16 = (
    ("B200", 2250), ("H200 NVL", 835), ("H200", 989), ("GH200", 989), ("H100 NVL", 835), ("H100 PCIe", 756),
    ("H100", 989), ("H800", 989), ("A100", 312), ("A800", 312), ("L40S", 362), ("L40", 181), ("L4", 121), ("A40", 150),
    ("A30", 165), ("A10", 125), ("RTX 4090", 165), ("RTX 3090", 71), ("MI325X", 1307), ("MI300X", 1307),
    ("MI250X", 383),
)  # fmt: skip
"""TFLOP/s of dense bf16 products with fp32 sums, from the vendors' data sheets; where a sheet states the rate with
structured sparsity, half of it. The first name that a device's own name holds as whole words is its."""
MEASURED_S = 0.3


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device, and where the number is from: "data sheet" or "measured"."""

    flops_per_s: float
    source: str


def peak(device: torch.device, precision: str) -> Peak:
    """The device's rate of matrix products in fp32 or bf16: a CUDA device's data sheet for bf16, else measured here."""
    if device.type == "cuda" and precision == "bf16":
        stated = data_sheet(torch.cuda.get_device_name(device))
        if stated is not None:
            return Peak(stated, "data sheet")
    return Peak(matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32), "measured")


def data_sheet(name: str) -> float | None:
    """FLOP/s of the device of that name (`torch.cuda.get_device_name`), dense bf16; None if it is not listed."""
    for known, rate in DENSE_BF16:
        if re.search(rf"(?<![A-Za-z0-9]){known}(?![A-Za-z0-9])", name):
            return rate * TERA
    return None


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = MEASURED_S) -> float:
    """FLOP/s of products of square matrices with the threads of this process: the best of as many as fit the time.

    Measured once a process. No random number is drawn.
    """
    n = 8192 if device.type == "cuda" else 1024
    left = torch.linspace(-1, 1, n * n, device=device).reshape(n, n).to(dtype)
    right, out = left.T.contiguous(), torch.empty_like(left)
    torch.mm(left, right, out=out)  # the first one starts threads and picks kernels
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, _timed(left, right, out))
    return 2 * n**3 / best


def _timed(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    _finish(left.device)
    began = time.perf_counter()
    torch.mm(left, right, out=out)
    _finish(left.device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
