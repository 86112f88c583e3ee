"""A training stage from model directory to model directory: load, freeze, train, audit, save."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.models import load
from pipeline.models.blocks import decoder_blocks
from pipeline.models.directory import read_expansion
from pipeline.models.save import as_stored, save_trained, tensor_hashes
from pipeline.training.attention import choose_attention
from pipeline.training.blocks import choose_compile, prepare_blocks
from pipeline.training.deadline import Deadline
from pipeline.training.distributed import Layout, distribute, handlers, is_sharded, own_part, whole
from pipeline.training.loop import train
from pipeline.training.loss import PackedLoss, check_isolation, head_is_plain
from pipeline.training.optim import build_adamw
from pipeline.training.quantised import quantise_frozen, quantised_tensors
from pipeline.training.runtime import Row, RowStream, Runtime
from pipeline.training.settings import Settings
from pipeline.training.strategy import Strategy
from pipeline.training.throughput import peak_memory_bytes


@dataclass(frozen=True)
class Device:
    """Where and through what a run computes: launch knobs.

    Attributes:
        cpu: compute on the CPU even if there is a GPU.
        attention: the kernel, see `pipeline.training.attention`.
        checkpointing: which activations are recomputed rather than kept, see `pipeline.training.blocks`.
        compile: compile each block: true, false or "auto".
        loggers: Accelerate's trackers by name ("tensorboard", "wandb", ...); metrics.jsonl is written always.
        loss_chunk: tokens whose logits are in memory at once.
        layout: how parameters lie over the processes.
    """

    cpu: bool
    attention: str
    checkpointing: str
    compile: bool | str
    loggers: Sequence[str]
    loss_chunk: int
    layout: Layout


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
    multiplied in bf16, or with `frozen_dtype` in fewer bits. Frozen tensors are hashed before and after.

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
        kwargs_handlers=handlers(),
    )
    if device.loggers:
        accelerator.init_trackers("llama-pro")
    torch.manual_seed(settings.seed)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model = load(source, dtype=dtype)
    model.config.use_cache = False
    plain_head = head_is_plain(model)
    check_isolation(model)
    attention = choose_attention(model, device.attention, accelerator.device)
    expansion = read_expansion(source)
    loaded, model = model, strategy.apply(model, expansion["module_parameters"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    counts = _counts(model)
    if settings.frozen_dtype:
        quantise_frozen(model, settings.frozen_dtype)
    model.train()
    num_steps = settings.total_steps(stream.rows_per_pass)
    # A product and a sum for each weight and token, forwards and backwards.
    num_flops = 4.0 * counts["num_parameters"] * num_steps * settings.batch_size * settings.seq_len
    compiled = choose_compile(device.compile, accelerator.device, num_flops)
    prepare_blocks(loaded, device.checkpointing, compiled)
    lr_scales = strategy.lr_scales(expansion)
    loss_model, optimizer, trainable = distribute(
        accelerator,
        PackedLoss(model, plain_head, device.loss_chunk, one_row=attention == "flash"),
        decoder_blocks(loaded) if device.layout.sharding != "none" else (),
        device.layout,
        lambda named: build_adamw(
            named.items(), settings.lr, settings.betas, settings.eps, settings.weight_decay, lr_scales
        ),
    )
    if compiled:
        runtime.progress(step=0, total=num_steps, note="compiling the blocks as they are first used")
    # These very parameters: a sharded model shows others in their place as long as a unit is gathered.
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad} | quantised_tensors(model)
    frozen_before = _frozen_hashes(frozen)
    summary = train(accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime)
    audit_frozen(frozen_before, _frozen_hashes(frozen))
    if is_sharded(trainable):
        parts = ((name, whole(p.detach())) for name, p in trainable.items())
        trained = {name: tensor.cpu() for name, tensor in parts if accelerator.is_main_process}
        if accelerator.is_main_process:
            loaded, model = _whole_again(load(source, dtype=dtype), strategy, expansion, trained)
    if accelerator.is_main_process:
        save_trained(source, target, as_stored(loaded, strategy.trained(model)))
        shutil.rmtree(runtime.directory / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    counts |= {"num_processes": accelerator.num_processes, "attention": attention, "compiled": compiled}
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
        deadline=Deadline.of(launch),
        log_samples=launch["log_samples"],
    )
    layout = Layout(launch["sharding"], launch["reshard"])
    knobs = ("cpu", "attention", "checkpointing", "compile", "loggers", "loss_chunk")
    return runtime, Device(**{key: launch[key] for key in knobs}, layout=layout)


def audit_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise ValueError if a frozen tensor is not what it was before training."""
    moved = sorted(name for name in before if after.get(name) != before[name])
    if moved:
        raise ValueError(f"{len(moved)} frozen tensors changed during training: {', '.join(moved[:4])}")


def _whole_again(
    loaded: Any, strategy: Strategy, expansion: Mapping[str, Any], trained: Mapping[str, torch.Tensor]
) -> tuple[Any, Any]:
    """A model newly loaded, and it as the strategy makes it, with what was trained in parts in its place."""
    model = strategy.apply(loaded, expansion["module_parameters"])
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.data = trained[name]
    return loaded, model


def _frozen_hashes(frozen: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of what this process holds of them."""
    return tensor_hashes({name: own_part(p.detach()) for name, p in frozen.items()})


def _counts(model: torch.nn.Module) -> dict[str, Any]:
    parameters = list(model.parameters())
    return {
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }
