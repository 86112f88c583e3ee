"""What the base computes on the tracked rows: once, before the first step, and by the way in which training does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.models import load
from pipeline.models.architecture.blocks import decoder_blocks
from pipeline.training.device import Device
from pipeline.training.kernels.attention import choose_attention
from pipeline.training.kernels.blocks import prepare_blocks
from pipeline.training.kernels.experts import cast_experts
from pipeline.training.kernels.head import Head, head_of
from pipeline.training.kernels.quantised import hold_frozen
from pipeline.training.micro_batches import MicroBatches
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.parallel.distributed import place
from pipeline.training.reload_check import release
from pipeline.training.saving import Prepared, loaded_dtype
from pipeline.training.settings import Settings
from pipeline.training.tracking.measure import BaseValues, Tracking


def base_values(
    accelerator: Any, tracking: Tracking, settings: Settings, device: Device, ready: Prepared, micro_batch: int
) -> BaseValues:
    """Load the base as the model in training was, have it compute, and give its memory back; draws no random number.

    It computes the same rows by the same kernels from weights in the same dtypes: a model that an exact expansion made
    of it gets the same logits to the bit.

    Raises:
        ValueError: its vocabulary has another size than the model's.
    """
    if tracking.base is None:
        return BaseValues()
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        base, head = _loaded(tracking.base, settings, device, ready, accelerator.device)
        loss = PackedLoss(
            base, head, device.loss_chunk, ready.facts["attention"] == "flash", ready.facts["one_document_a_row"]
        )
    blocks = decoder_blocks(base) if device.layout.sharding != "none" else ()
    placed = place(accelerator, loss, blocks, device.layout).eval()
    batches = MicroBatches(accelerator, placed, settings.precision, micro_batch, {})
    logits, values = {}, {}
    for one in tracking.measures:
        if one.of_base:
            logits[one.name] = batches.logits(one.rows)
        else:
            values[one.name] = accelerator.reduce(batches.loss_sum(one.rows), "sum").item() / one.divisor
    release(base, None)
    return BaseValues(logits, values)


def _loaded(
    directory: Path, settings: Settings, device: Device, ready: Prepared, where: torch.device
) -> tuple[Any, Head | None]:
    """The base in the dtypes and with the kernels of the model in training, and how its logits follow."""
    base = load(directory, dtype=loaded_dtype(directory, settings))
    own, other = (model.config.get_text_config().vocab_size for model in (ready.loaded, base))
    if own != other:
        raise ValueError(
            f"track.measures: drift compares distributions, and the model has {own} logits and its base {other}; "
            "track domain alone"
        )
    base.config.use_cache = False
    base.requires_grad_(False)
    head = head_of(base)
    choose_attention(base, device.attention, where)
    cast_experts(base)
    if settings.frozen_dtype:
        hold_frozen(base, settings.frozen_dtype)
    dtype = ready.loaded.get_input_embeddings().weight.dtype
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype)
    prepare_blocks(base, "off", ready.facts["compiled"])
    return base, head
