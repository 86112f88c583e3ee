"""A model under DeepSpeed's ZeRO: gradients and optimizer state in parts over the processes (2), or weights too (3).

Accelerate starts the processes and DeepSpeed's engine partitions, configured here alone: no DeepSpeed or Accelerate
file is read. What trains is held in fp32 as everywhere else, so that DeepSpeed scales no loss; its copy of these
masters is a second one. Its own checkpoints are pickles and are not used: what a checkpoint keeps is gathered by name,
so that any other layout goes on from it, and this one from any other's.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

BUCKET = 50_000_000
"""Numbers that are exchanged at once: 200 MB of fp32, allocated whatever the model's size; DeepSpeed's own is 2 GB."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroOptimizer:
    """The engine's optimizer as the training loop uses one: it decides about a step when it knows the gradient's norm.

    Attributes:
        trainable: parameters by name, as the model shows them.
    """

    def __init__(self, engine: Any, trainable: Mapping[str, nn.Parameter]) -> None:
        self.engine, self.zero, self.trainable = engine, engine.optimizer, trainable
        self.stage = engine.zero_optimization_stage()
        self._make_state()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer that the engine was given."""
        return self.zero.param_groups

    @property
    def state(self) -> dict[Any, Any]:
        """Of this process's part."""
        return self.zero.optimizer.state

    def clip(self, max_norm: float) -> torch.Tensor:
        """Have the next step clip the whole gradient to a norm; its norm unclipped."""
        self.zero.clip_grad = max_norm
        square = torch.zeros((), device=self.engine.device)
        for part in self._gradients():
            square += part.float().square().sum()
        dist.all_reduce(square)
        return square.sqrt()

    def step(self) -> None:
        """Update what trains and drop the gradient."""
        self.engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop a gradient that no step took: DeepSpeed itself discards all of one that is not finite."""
        parts = list(self._gradients())
        for part in parts:
            part.fill_(torch.nan)
        if parts:
            self.engine.step()

    def whole(self) -> tuple[dict[str, nn.Parameter], Any]:
        """Whole copies of what trains and of its moments, on the CPU; every process must ask for them.

        Returns:
            Parameters by name, and what has their state and their groups as an optimizer of them would.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        updates = next(iter(self.state.values()))["step"]
        whole: dict[str, nn.Parameter] = {}
        state: dict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, parameter in self.trainable.items():
            moments = {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in _MOMENTS}
            whole[name] = nn.Parameter(gathered(parameter).cpu())
            state[whole[name]] = {"step": updates.detach().cpu().clone(), **moments}
        return whole, SimpleNamespace(state=state, param_groups=self.param_groups)

    @torch.no_grad()
    def put(self, whole: Mapping[str, torch.Tensor], state: Mapping[Any, Mapping[str, torch.Tensor]]) -> None:
        """Take over what `whole` gave, or a checkpoint put in its place."""
        for name, tensor in whole.items():
            self._put(self.trainable[name], tensor.detach(), None)
            for moment in _MOMENTS:
                self._put(self.trainable[name], state[tensor][moment], moment)
        updates = next(iter(state.values()))["step"]
        for held in self.state.values():
            held["step"].copy_(updates)

    def _put(self, parameter: Any, value: torch.Tensor, moment: str | None) -> None:
        """Set this process's part of a parameter or, by its name, of one of its moments."""
        from deepspeed import utils

        if self.stage == 3:
            size = parameter.ds_tensor.numel()  # the last process's part is padded
            flat = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
            value = flat.narrow(0, size * dist.get_rank(), size).to(parameter.ds_tensor.device)
            if moment:
                utils.safe_set_local_optimizer_state(parameter, value, moment)
            else:
                utils.safe_set_local_fp32_param(parameter, value)
                parameter.ds_tensor.copy_(value.view_as(parameter.ds_tensor))
        elif moment:
            utils.safe_set_full_optimizer_state(parameter, value, moment)
        else:
            utils.safe_set_full_fp32_param(parameter, value)
            parameter.copy_(value)

    def _make_state(self) -> None:
        """What a fused AdamW has before its first step: made in it, DeepSpeed links that of the first group alone."""
        flats = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        for flat in getattr(self.zero, flats):
            moments = {key: torch.zeros_like(flat) for key in _MOMENTS}
            self.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}
        if self.stage == 2:
            self.zero._lazy_init_hp_params_optimizer_state()

    def _gradients(self) -> Iterator[torch.Tensor]:
        """This process's part of the gradient, averaged over the processes: no number is in two parts."""
        for parts in self.zero.averaged_gradients.values():
            yield from parts or ()


def partition(
    accelerator: Any,
    loss_model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    stage: int,
    precision: str,
) -> tuple[nn.Module, ZeroOptimizer]:
    """DeepSpeed's engine around a model, and its optimizer.

    Args:
        trainable: its parameters that train by name, all in fp32.
        optimizer: of these.

    Raises:
        ValueError: DeepSpeed is not installed.
    """
    deepspeed = _deepspeed(accelerator.device)
    engine = deepspeed.initialize(model=loss_model, optimizer=optimizer, config=_config(stage, precision))[0]
    return engine, ZeroOptimizer(engine, trainable)


def gathered(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter that trains, with all its parts; every process must ask for it."""
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter)


def _deepspeed(device: torch.device) -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError("launch.sharding=zero2 and zero3 need DeepSpeed: pip install -e '.[deepspeed]'") from error
    if device.type == "cpu":
        # Otherwise it compiles an operator of its own for minutes, and one start that is killed meanwhile leaves a lock
        # behind for which every later one waits for ever. Without it, gloo exchanges what is exchanged.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.set_log_level_from_string("warning")
    warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
    return deepspeed


def _config(stage: int, precision: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # asked for and unused: the loop divides losses and ends accumulation
        "gradient_accumulation_steps": 1,
        "steps_per_print": 1 << 60,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
    }
    if precision == "bf16":  # outside its engine autocast is switched off; no module's gradients are exchanged in bf16
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config
