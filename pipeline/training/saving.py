"""The end of training: what trained is gathered, written, and loaded again to be compared."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file

from pipeline.models import load
from pipeline.models.directory import Form, read_config
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.save import as_stored, save_trained
from pipeline.records.expansion import read_expansion
from pipeline.training.cost.flops import Cost
from pipeline.training.kernels.routers import Routers
from pipeline.training.methods.carried_lora import ADAPTER_FILE
from pipeline.training.methods.penalty import Penalty
from pipeline.training.methods.strategy import Strategy, apply_strategy
from pipeline.training.parallel.distributed import is_sharded, whole
from pipeline.training.reload_check import Conditions, check_bytes, check_reloaded, release, remember
from pipeline.training.runtime import Row
from pipeline.training.settings import Settings


@dataclass(frozen=True)
class Prepared:
    """A model as the strategy makes it, on its device or devices, with what the loop needs of it.

    `penalties`: those of `loss_model`; `routers`: its routers of experts, whose load is told; None: it has none.
    `untied`: as it was loaded, see `is_untied`; merging adapters changes what its config says.
    """

    loaded: Any
    untied: bool
    model: Any
    loss_model: torch.nn.Module
    optimizer: Any
    trainable: Mapping[str, torch.nn.Parameter]
    frozen: Mapping[str, torch.Tensor]
    cost: Cost | None
    penalties: Mapping[str, Penalty]
    routers: Routers | None
    facts: dict[str, Any]


def save_and_check(
    accelerator: Any,
    source: Path,
    target: Path,
    strategy: Strategy,
    settings: Settings,
    ready: Prepared,
    rows: Sequence[Row],
) -> dict[str, Any]:
    """Write the trained model and check it; every process takes part, since what is sharded has to be gathered.

    The model and the optimizer cannot be used any more.

    Returns:
        Metrics: how long writing and checking took, seconds; nothing on processes that did not write.

    Raises:
        ValueError: what was written is not what was trained, in any bit.
    """
    loaded, model, device = ready.loaded, ready.model, accelerator.device
    dtype = loaded_dtype(source, settings)
    if is_sharded(ready.trainable):
        parts = ((name, whole(p).detach()) for name, p in ready.trainable.items())
        trained = {name: tensor.cpu() for name, tensor in parts if accelerator.is_main_process}
        device, dtype = torch.device("cpu"), run_dtype(settings)
        if accelerator.is_main_process:
            loaded, model = _whole_again(source, dtype, strategy, trained)
    if not accelerator.is_main_process:
        return {}
    started = time.monotonic()
    if hasattr(strategy, "carried"):
        save_file(strategy.carried(model), target.parent / ADAPTER_FILE)
    stored, changed = read_index(source), strategy.trained(model)
    written = as_stored(loaded, changed, stored)
    save_trained(source, target, written, save=cast(Form, settings.save), untie=ready.untied)
    saved = time.monotonic()
    check_bytes(target, written)
    facts = ready.facts
    how = Conditions(
        rows=rows, dtype=dtype, precision=settings.precision, frozen_dtype=settings.frozen_dtype, device=device,
        one_row=facts["attention"] == "flash", apart=facts["one_document_a_row"],
    )  # fmt: skip
    remembered = remember(loaded, changed, stored, how)
    del written, changed
    release(loaded, ready.optimizer)
    check_reloaded(target, remembered, how)
    return {"save_s": saved - started, "reload_check_s": time.monotonic() - saved}


def _whole_again(
    source: Path, dtype: torch.dtype, strategy: Strategy, trained: Mapping[str, torch.Tensor]
) -> tuple[Any, Any]:
    """A model newly loaded, and it as the strategy makes it, with what was trained in parts in its place."""
    loaded = load(source, dtype=dtype)
    model = apply_strategy(strategy, loaded, read_expansion(source), source)
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.data = trained[name]
    return loaded, model


def loaded_dtype(source: Path, settings: Settings) -> torch.dtype:
    """As saved where that is how frozen weights are held, so that they never stand in memory in more bits."""
    is_saved_so = "bfloat16" in (read_config(source).get(key) for key in ("dtype", "torch_dtype"))
    return torch.bfloat16 if settings.frozen_dtype == "bf16" and is_saved_so else run_dtype(settings)


def run_dtype(settings: Settings) -> torch.dtype:
    """In which frozen weights are held, unless `frozen_dtype` says otherwise."""
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32
