"""A training stage from model directory to model directory: load, freeze, train, audit, save."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.models import load
from pipeline.models.directory import read_expansion
from pipeline.models.save import as_stored, save_trained, tensor_hashes
from pipeline.training.count import count_cost
from pipeline.training.loop import Row, RowStream, Runtime, train
from pipeline.training.loss import PackedLoss, head_is_plain
from pipeline.training.memory import Knobs
from pipeline.training.optim import build_adamw
from pipeline.training.peak import peak
from pipeline.training.preflight import check_labels, expected_memory, probe, shortage_explained
from pipeline.training.settings import Settings
from pipeline.training.strategy import Strategy
from pipeline.training.throughput import peak_memory_bytes, utilisation


@dataclass(frozen=True)
class Device:
    """Where and through what a run computes: launch knobs.

    Attributes:
        cpu: compute on the CPU even if there is a GPU.
        attention: see `pipeline.models.load`.
        loggers: Accelerate's trackers by name ("tensorboard", "wandb", ...); metrics.jsonl is written always.
        loss_chunk: tokens whose logits are in memory at once.
        preflight: look for labels and try one step before the run.
        knobs: of this launch, those that bear on memory.
    """

    cpu: bool
    attention: str
    loggers: Sequence[str]
    loss_chunk: int
    preflight: bool
    knobs: Knobs


def fit(
    source: Path,
    target: Path,
    strategy: Strategy,
    settings: Settings,
    stream: RowStream,
    validation: Mapping[str, Sequence[Row]],
    runtime: Runtime,
    device: Device,
) -> dict[str, Any]:
    """Train the model saved in `source` and save the result to `target`.

    What trains is held in fp32 (master weights); with precision bf16 everything else stays in bf16 and matrices are
    multiplied in bf16. Frozen tensors are hashed before and after.

    Returns:
        Metrics: losses, counts of parameters, tokens per second, peak memory, and the result of the audit.

    Raises:
        ValueError: the strategy does not fit the model, the loss is not finite, or a frozen tensor moved.
        StoppedError: the runtime asked for it.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(
        cpu=device.cpu,
        mixed_precision="no",  # the loop opens autocast itself: what it covers must not depend on a launcher's config
        log_with=list(device.loggers) or None,
        project_dir=str(runtime.directory) if device.loggers else None,
    )
    if device.loggers:
        accelerator.init_trackers("llama-pro")
    torch.manual_seed(settings.seed)
    model = load(
        source, dtype=torch.bfloat16 if settings.precision == "bf16" else torch.float32, attention=device.attention
    )
    model.config.use_cache = False
    plain_head = head_is_plain(model)
    expansion = read_expansion(source)
    loaded, model = model, strategy.apply(model, expansion["module_parameters"])
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    cost = count_cost(loaded)
    frozen_before = _frozen_hashes(model)
    counts = _counts(model)
    model.train()
    lr_scales = strategy.lr_scales(expansion)
    optimizer = build_adamw(
        trainable.items(), settings.lr, settings.betas, settings.eps, settings.weight_decay, lr_scales
    )
    loss_model, optimizer = accelerator.prepare(PackedLoss(model, plain_head, device.loss_chunk), optimizer)
    num_steps = settings.total_steps(stream.rows_per_pass)
    runtime = replace(runtime, cost=cost)
    tried = {}
    if device.preflight and accelerator.distributed_type != "DEEPSPEED":  # its engine takes no step on trial
        runtime.progress(step=0, total=num_steps, note="trying one step")
        check_labels(stream, settings.batch_size)
        expected = expected_memory(source, strategy, settings, device.knobs)
        found = probe(accelerator, loss_model, optimizer, trainable, settings, device.knobs, expected)
        runtime.progress(step=0, total=num_steps, note=f"a step fits: {found}")
        tried = found.record()
    with shortage_explained(settings.seq_len, device.knobs):
        summary = train(accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime)
    audit_frozen(frozen_before, _frozen_hashes(model))
    if accelerator.is_main_process:
        save_trained(source, target, as_stored(loaded, strategy.trained(model)))
        shutil.rmtree(runtime.directory / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    counts["num_processes"] = accelerator.num_processes
    summary |= {**tried, **utilisation(summary, peak(accelerator.device, settings.precision))}
    return {**summary, **counts, "num_frozen_tensors": len(frozen_before), "peak_memory_bytes": peak_memory_bytes()}


def launch_options(
    launch: Mapping[str, Any], directory: Path, progress: Callable[..., None], should_stop: Callable[[], bool]
) -> tuple[Runtime, Device]:
    """The launch knobs of a training stage, in the two groups that the library takes."""
    runtime = Runtime(
        directory=directory,
        micro_batch=launch["micro_batch"],
        checkpoint_every_s=launch["checkpoint_every_s"],
        keep_checkpoints=launch["keep_checkpoints"],
        progress=progress,
        should_stop=should_stop,
    )
    device = Device(
        **{key: launch[key] for key in ("cpu", "attention", "loggers", "loss_chunk")},
        preflight=bool(launch.get("preflight")),
        knobs=Knobs.of(launch),
    )
    return runtime, device


def audit_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise ValueError if a frozen tensor is not what it was before training."""
    moved = sorted(name for name in before if after.get(name) != before[name])
    if moved:
        raise ValueError(f"{len(moved)} frozen tensors changed during training: {', '.join(moved[:4])}")


def _frozen_hashes(model: torch.nn.Module) -> dict[str, str]:
    return tensor_hashes({name: p for name, p in model.named_parameters() if not p.requires_grad})


def _counts(model: torch.nn.Module) -> dict[str, int]:
    parameters = list(model.parameters())
    return {
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }
