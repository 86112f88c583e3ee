"""A training stage from model directory to model directory: load, freeze, try, train, audit, save."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.models import load
from pipeline.models.architecture.aliases import is_untied
from pipeline.models.architecture.blocks import decoder_blocks
from pipeline.models.save import check_savable, tensor_hashes
from pipeline.records.expansion import read_expansion
from pipeline.training.cost.count import count_cost, num_active
from pipeline.training.cost.flops import cost_of
from pipeline.training.cost.forecast import known_shape
from pipeline.training.cost.memory import Memory
from pipeline.training.cost.peak import peak
from pipeline.training.cost.preflight import check_labels, expect, loading_explained, probe, shortage_explained
from pipeline.training.cost.throughput import peak_memory_bytes, utilisation
from pipeline.training.device import Device
from pipeline.training.kernels.attention import choose_attention
from pipeline.training.kernels.base_copy import base_copy
from pipeline.training.kernels.blocks import choose_compile, prepare_blocks
from pipeline.training.kernels.document_separation import mixes_documents
from pipeline.training.kernels.experts import cast_experts
from pipeline.training.kernels.fp32_matmul import choose_fp32_matmul, fp32_matmul
from pipeline.training.kernels.head import head_of
from pipeline.training.kernels.quantised import held_tensors, hold_frozen
from pipeline.training.kernels.routers import routers_of
from pipeline.training.loop import train
from pipeline.training.methods.optim import build_adamw
from pipeline.training.methods.penalty import check_penalties, needs_base, of_batches, with_penalties
from pipeline.training.methods.router_balance import with_router_balance
from pipeline.training.methods.start_distance import FOLDER, hold
from pipeline.training.methods.strategy import AdaptsRates, Strategy, apply_strategy
from pipeline.training.micro_batches import MicroBatches
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.parallel.carried import carry_optimizer, keep_optimizer
from pipeline.training.parallel.distributed import distribute, handlers, main_takes_its_time, own_part
from pipeline.training.parallel.same_rows import Rows, SameRows
from pipeline.training.reload_check import check_rows
from pipeline.training.runtime import Row, RowStream, Runtime
from pipeline.training.saving import Prepared, loaded_dtype, run_dtype, save_and_check
from pipeline.training.settings import Settings
from pipeline.training.tracking.base import base_values
from pipeline.training.tracking.measure import Tracking
from pipeline.training.tracking.tracker import BEST, Tracker


def fit(
    source: Path,
    target: Path,
    strategy: Strategy,
    settings: Settings,
    stream: RowStream,
    validation: Mapping[str, Sequence[Row]],
    runtime: Runtime,
    device: Device,
    tracking: Tracking | None = None,
    general_rows: Callable[[Any], Rows] | None = None,
) -> dict[str, Any]:
    """Train the model saved in `source` and save the result to `target`.

    What trains is held in fp32 (master weights); with precision bf16 everything else stays in bf16 and matrices are
    multiplied in bf16, or with `frozen_dtype` in fewer bits. Frozen tensors are hashed before and after.
    `general_rows` reads the text that a strategy or a penalty names (`ReadsGeneralText`).

    Returns:
        Metrics: losses, counts of parameters, tokens per second, utilisation, peak memory, and the result of the audit.

    Raises:
        ValueError: the strategy does not fit the model, a step does not fit into memory, the loss is not finite, or a
            frozen tensor moved.
        StoppedError: the runtime asked for it.
    """
    accelerator = _accelerator(settings, runtime, device)
    num_steps, rows = settings.total_steps(stream), check_rows(stream, validation)
    num_tokens = num_steps * settings.batch_size * stream.unit_tokens
    expected = expect(accelerator, source, strategy, settings, device.knobs) if device.preflight else None
    with loading_explained(settings, device.knobs):
        ready = _prepare(accelerator, source, strategy, settings, num_tokens, device)
    frozen_before = _hashes(ready.frozen)
    with fp32_matmul(ready.facts["fp32_matmul"]):
        same = SameRows(ready.loss_model, ready.trainable, accelerator.device, settings.precision, runtime.micro_batch)
        with shortage_explained(settings.seq_len, device.knobs):
            penalties = hold(ready.penalties, same, runtime.directory, general_rows or _no_text, runtime.progress)
        tracker = _tracker(accelerator, tracking, settings, runtime, device, ready) if tracking else None
        tried = _try_a_step(accelerator, settings, stream, runtime, device, ready, num_steps, expected)
        carried = carry_optimizer(settings, source, ready.trainable, ready.optimizer)
        compiling = {"validation", *(() if tried else ("step",))} if ready.facts["compiled"] else ()
        with shortage_explained(settings.seq_len, device.knobs):
            summary = train(
                accelerator, ready.loss_model, ready.optimizer, ready.trainable, stream, validation, settings,
                num_steps, replace(runtime, cost=ready.cost, compiling=frozenset(compiling)), penalties, tracker,
                _rates(source, strategy, same, ready.optimizer, general_rows or _no_text, num_steps), ready.routers,
            )  # fmt: skip
        best = peak(accelerator.device, settings.precision)
        audit_frozen(frozen_before, _hashes(ready.frozen))
        keep_optimizer(settings, runtime.directory, summary["num_steps"], ready.trainable, ready.optimizer)
        peak_memory = peak_memory_bytes()
        runtime.progress(note="saving, and loading what was saved")
        with main_takes_its_time(accelerator):
            checked = save_and_check(accelerator, source, target, strategy, settings, ready, rows)
            if accelerator.is_main_process:
                for name in ("checkpoints", BEST, FOLDER):
                    shutil.rmtree(runtime.directory / name, ignore_errors=True)
    accelerator.end_training()
    summary |= {**tried, **utilisation(summary, best)}
    summary |= {**ready.facts, "num_processes": accelerator.num_processes, "optimizer_carried": carried}
    summary |= {"num_frozen_tensors": len(frozen_before), "peak_memory_bytes": peak_memory}
    return {**summary, **checked}


def _accelerator(settings: Settings, runtime: Runtime, device: Device) -> Any:
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
    return accelerator


def _prepare(
    accelerator: Any, source: Path, strategy: Strategy, settings: Settings, num_tokens: float, device: Device
) -> Prepared:
    check_penalties(strategy.penalties, device.layout.sharding)
    loaded = load(source, dtype=loaded_dtype(source, settings))
    loaded.config.use_cache = False
    head = head_of(loaded)
    apart = mixes_documents(loaded)
    routers = None if apart else routers_of(loaded)
    attention = choose_attention(loaded, device.attention, accelerator.device)
    expansion = read_expansion(source)
    untied = is_untied(loaded)
    model = apply_strategy(strategy, loaded, expansion, source)
    cast_experts(loaded)
    penalties = with_router_balance(
        strategy.penalties, settings.router_balance, loaded, routers, device.layout.sharding
    )
    check_savable(source, loaded, strategy.writes(model))
    if type(loaded.get_output_embeddings()) is not torch.nn.Linear:  # adapted: its weight alone is not what it computes
        head = None
    if head is None:
        warnings.warn(
            f"{type(loaded).__name__} makes its logits in a way of its own: all of a micro batch stand in memory at "
            f"once, and launch.loss_chunk={device.loss_chunk} is ignored",
            stacklevel=2,
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    counts, known = {**_counts(model), "num_active": num_active(loaded)}, known_shape(source, strategy)
    cost = cost_of(*known) if known else count_cost(loaded)  # the formula gives what counting does, at once
    cost = cost and with_penalties(cost, penalties)
    if settings.frozen_dtype:
        _check_unsharded(settings.frozen_dtype, device.layout.sharding)
        hold_frozen(model, settings.frozen_dtype)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(run_dtype(settings))
    model.train()
    base = base_copy(loaded, accelerator.device) if needs_base(penalties) else None
    # A product and a sum for each weight and token, forwards and backwards.
    num_flops = 4.0 * counts["num_parameters"] * num_tokens
    wide = choose_fp32_matmul(device.fp32_matmul, accelerator.device, settings.precision, device.compile)
    compiled = choose_compile(device.compile, accelerator.device, num_flops, settings.precision, wide)
    if apart:
        compiled = _apart(loaded, device, strategy)
    prepare_blocks(loaded, device.checkpointing, compiled)
    if base is not None:
        prepare_blocks(base, "off", compiled)
    lr_scales = strategy.lr_scales(expansion)
    loss_model, optimizer, trainable = distribute(
        accelerator,
        PackedLoss(model, head, device.loss_chunk, attention == "flash", apart, of_batches(penalties), base, routers),
        decoder_blocks(loaded) if device.layout.sharding != "none" else (),
        device.layout,
        lambda named: build_adamw(
            named.items(), settings.lr, settings.betas, settings.eps, settings.weight_decay, lr_scales
        ),
        settings.precision,
    )
    # These very parameters: a sharded model shows others in their place as long as a unit is gathered.
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad} | held_tensors(model)
    facts = {**counts, "attention": attention, "compiled": compiled, "fp32_matmul": wide, "one_document_a_row": apart}
    return Prepared(
        loaded, untied, model, loss_model, optimizer, trainable, frozen, cost, penalties, routers, facts
    )  # fmt: skip


def _try_a_step(
    accelerator: Any,
    settings: Settings,
    stream: RowStream,
    runtime: Runtime,
    device: Device,
    ready: Prepared,
    num_steps: int,
    expected: Memory | None,
) -> dict[str, Any]:
    """Labels looked for and one step tried before the run, if that is asked for; what was found, as metrics."""
    if not device.preflight:
        return {}
    runtime.progress(
        step=0, total=num_steps, note=f"trying one step{' (compiling)' if ready.facts['compiled'] else ''}"
    )
    check_labels(stream, settings.batch_size)
    found = probe(accelerator, ready.loss_model, ready.optimizer, ready.trainable, settings, device.knobs, expected)
    runtime.progress(step=0, total=num_steps, note=f"a step fits: {found}")
    return found.record()


def _tracker(
    accelerator: Any, tracking: Tracking, settings: Settings, runtime: Runtime, device: Device, ready: Prepared
) -> Tracker:
    """What measures the model as it trains; the base computes here, once."""
    runtime.progress(note="the base computes what is tracked")
    base = base_values(accelerator, tracking, settings, device, ready, runtime.micro_batch)
    batches = MicroBatches(accelerator, ready.loss_model, settings.precision, runtime.micro_batch, {})
    return Tracker(tracking, base, accelerator, batches, ready.trainable, ready.optimizer, runtime.directory)


def _rates(
    source: Path, strategy: Strategy, same: SameRows, optimizer: Any, rows_of: Callable[[Any], Rows], num_steps: int
) -> Any:
    """What sets learning rates along the run; None where nothing does."""
    if not isinstance(strategy, AdaptsRates):
        return None
    return strategy.rates(read_expansion(source), same, optimizer, rows_of(strategy), num_steps)


def _no_text(reader: Any) -> Rows:
    raise ValueError(f"{type(reader).__name__} reads text in general, and none was given")


def _apart(loaded: Any, device: Device, strategy: Strategy) -> bool:
    """Say that documents of a row are taken apart, and what does not go with that; whether to compile: no."""
    kind = type(loaded).__name__
    if penalties := of_batches(strategy.penalties):
        raise ValueError(
            f"{kind} lets a document of a packed row see the one before it, so it is given one document a row, which "
            f"penalties cannot follow; remove strategy.penalties ({', '.join(penalties)})"
        )
    if device.layout.sharding != "none":
        # Processes would run their blocks different numbers of times, and wait for each other for ever.
        raise ValueError(
            f"{kind} lets a document of a packed row see the one before it, so it is given one document a row, which "
            f"launch.sharding={device.layout.sharding} cannot do; use launch.sharding=none"
        )
    asked = " launch.compile=true is ignored: the rows' lengths differ." if device.compile is True else ""
    warnings.warn(
        f"{kind} lets a document of a packed row see the one before it: it is trained on one document a row.{asked}",
        stacklevel=3,
    )
    return False


def _check_unsharded(frozen_dtype: str, sharding: str) -> None:
    if sharding != "none":
        raise ValueError(
            f"frozen_dtype={frozen_dtype} is held whole in every process and launch.sharding={sharding} shards; "
            "use one of the two"
        )


def audit_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise ValueError if a frozen tensor is not what it was before training."""
    moved = sorted(name for name in before if after.get(name) != before[name])
    if moved:
        raise ValueError(f"{len(moved)} frozen tensors changed during training: {', '.join(moved[:4])}")


def _hashes(frozen: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of what this process holds of them."""
    return tensor_hashes({name: own_part(p).detach() for name, p in frozen.items()})


def _counts(model: torch.nn.Module) -> dict[str, Any]:
    parameters = list(model.parameters())
    return {
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }
