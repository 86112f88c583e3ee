"""A model over several processes: replicated (DDP), sharded in units (FSDP2) or partitioned by DeepSpeed (`zero`).

A unit of FSDP2 is one decoder block; what is in none (embeddings, last norm, head) is the root. A unit is gathered
whole right before it computes, in the dtypes in which its parameters are held: fp32 masters of what trains, bf16 of
what is frozen. Gradients exist, and are exchanged, for what trains alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.cost.memory import ZERO_STAGES
from pipeline.training.parallel.zero import ZeroOptimizer, gathered, partition

SHARDING = ("none", "fsdp2", *ZERO_STAGES)
Build = Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Layout:
    """How parameters lie over the processes: launch knobs.

    Attributes:
        sharding: "none" holds the whole model in every process, "fsdp2" a part of every unit, "zero2" the whole model
            and a part of the optimizer's state, "zero3" a part of every parameter.
        reshard: give a unit's gathered parameters back after the forward pass and gather them again for the backward
            pass (less memory, one exchange more). Units that no gradient passes are given back in any case.
    """

    sharding: str
    reshard: bool

    def __post_init__(self) -> None:
        """Raise ValueError for a sharding that is not known."""
        if self.sharding not in SHARDING:
            raise ValueError(f"launch.sharding={self.sharding!r} is not known; use one of {', '.join(SHARDING)}")


def distribute(
    accelerator: Any,
    loss_model: nn.Module,
    blocks: Sequence[nn.Module],
    layout: Layout,
    build: Build,
    precision: str = "fp32",
) -> tuple[nn.Module, Any, dict[str, nn.Parameter]]:
    """Put a model on its device or devices and build its optimizer.

    Args:
        loss_model: what the training loop calls, a module around `model`; `requires_grad` and dtypes are final.
        blocks: the decoder blocks in it, in order.
        build: makes the optimizer of the parameters that train, by name.
        precision: fp32 or bf16, in which matrices are multiplied.

    Returns:
        The model to call, the optimizer (torch's, or a `ZeroOptimizer`), and what trains, by its name in
        `loss_model.model`, as the optimizer holds it.

    Raises:
        ValueError: Accelerate was configured for a sharding that is asked for otherwise here, or DeepSpeed is missing.
    """
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise ValueError(
            f"Accelerate is configured for {accelerator.distributed_type} (launch.config_file or accelerate_args)"
            "; leave that out and set launch.sharding=fsdp2, zero2 or zero3: Accelerate only starts the processes"
        )
    several = accelerator.num_processes > 1
    if layout.sharding in ZERO_STAGES and several:
        trainable, stage = _trainable(loss_model), ZERO_STAGES[layout.sharding]
        return *partition(accelerator, loss_model, trainable, build(trainable), stage, precision), trainable
    if layout.sharding == "fsdp2" and several:
        model = _shard(accelerator, loss_model, blocks, layout.reshard)
    else:
        _exchange_gradients_only(loss_model)
        model = accelerator.prepare_model(loss_model)
    trainable = _trainable(loss_model)
    return model, build(trainable), trainable


def place(accelerator: Any, model: nn.Module, blocks: Sequence[nn.Module], layout: Layout) -> nn.Module:
    """Put a model that does not train on its device or devices: in parts for fsdp2, else whole in every process."""
    if layout.sharding == "fsdp2" and accelerator.num_processes > 1:
        return _shard(accelerator, model, blocks, layout.reshard)
    return model.to(accelerator.device)


def handlers() -> list[Any]:
    """What Accelerate is told about DDP: gradients need no second copy for the exchange."""
    from accelerate import DistributedDataParallelKwargs

    return [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]


def unsynchronized(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, backward passes add up gradients on each process and exchange nothing."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    if isinstance(model, FSDPModule):
        return _off(model.set_requires_gradient_sync)
    if hasattr(model, "set_gradient_accumulation_boundary"):
        return _off(model.set_gradient_accumulation_boundary)
    return nullcontext()


@contextmanager
def _off(switch: Any) -> Iterator[None]:
    switch(False)
    try:
        yield
    finally:
        switch(True)


@contextmanager
def forgotten(model: nn.Module, optimizer: Any, trainable: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, a backward pass is tried: exchanged only where it has to be, and its gradient is dropped in the end."""
    # In parts over the processes, gradients that are not exchanged would stay out of sight.
    in_parts = is_sharded(trainable) or isinstance(optimizer, ZeroOptimizer)
    with nullcontext() if in_parts else unsynchronized(model):
        yield
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def main_takes_its_time(accelerator: Any) -> Iterator[None]:
    """At the end of this the other processes wait for the main one, up to a day: NCCL would give up in minutes."""
    several = accelerator.num_processes > 1
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=1)) if several else None
    yield
    if patient is not None:
        dist.barrier(group=patient)
        dist.destroy_process_group(patient)


def clip(accelerator: Any, optimizer: Any, trainable: Mapping[str, nn.Parameter], max_norm: float) -> torch.Tensor:
    """Have the gradient clipped to a norm when the optimizer's step uses it; its norm unclipped."""
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.clip(max_norm)
    return accelerator.clip_grad_norm_(list(trainable.values()), max_norm)


def agree(accelerator: Any, *decisions: bool) -> list[bool]:
    """A signal or a clock may reach the processes at different steps: one that says yes decides for all."""
    if accelerator.num_processes == 1:
        return list(decisions)
    votes = torch.tensor(decisions, dtype=torch.int32, device=accelerator.device)
    return [bool(v) for v in accelerator.reduce(votes, "sum")]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or another tensor with all its parts; every process must ask for it."""
    if hasattr(tensor, "ds_tensor"):
        return gathered(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this process holds; nothing is exchanged."""
    if hasattr(tensor, "ds_tensor"):
        return tensor.ds_tensor
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(parameters: Mapping[str, torch.Tensor]) -> bool:
    """Whether any of them lies in parts over the processes."""
    return any(isinstance(one, DTensor) or hasattr(one, "ds_tensor") for one in parameters.values())


def _trainable(loss_model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in loss_model.get_submodule("model").named_parameters() if p.requires_grad}


def _exchange_gradients_only(loss_model: nn.Module) -> None:
    """Have DDP leave alone what never changes: every process read it from the same files."""
    fixed = [name for name, p in loss_model.named_parameters() if not p.requires_grad]
    fixed += [name for name, _ in loss_model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss_model, fixed)


def _shard(accelerator: Any, loss_model: nn.Module, blocks: Sequence[nn.Module], reshard: bool) -> nn.Module:
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    first = _first_with_gradient(loss_model, blocks)
    for index, block in enumerate(blocks):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard or index < first)
    # The root stays gathered between its forward and its backward pass: the loss reads the head directly.
    return fully_shard(loss_model, mesh=mesh, reshard_after_forward=False)


def _first_with_gradient(loss_model: nn.Module, blocks: Sequence[nn.Module]) -> int:
    """The first block that a gradient reaches: that of the first parameter that trains in it or below all blocks."""
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    if any(p.requires_grad and id(p) not in inside for p in loss_model.parameters()):
        return 0
    return next((i for i, block in enumerate(blocks) if any(p.requires_grad for p in block.parameters())), len(blocks))
