"""The launch knobs of a training stage, in the two groups that the library takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.training.cost.memory import Knobs
from pipeline.training.deadline import Deadline
from pipeline.training.parallel.distributed import Layout
from pipeline.training.runtime import Runtime

_COPIED = ("cpu", "attention", "checkpointing", "compile", "loggers", "loss_chunk", "preflight", "fp32_matmul")


@dataclass(frozen=True)
class Device:
    """Where and through what a run computes.

    Attributes:
        cpu: compute on the CPU even if there is a GPU.
        attention: the kernel, see `pipeline.training.kernels.attention`.
        checkpointing: which activations are recomputed rather than kept, see `pipeline.training.kernels.blocks`.
        compile: compile each block: true, false or "auto".
        loggers: Accelerate's trackers by name ("tensorboard", "wandb", ...); metrics.jsonl is written always.
        loss_chunk: tokens whose logits are in memory at once.
        preflight: look for labels and try one step before the run.
        fp32_matmul: multiply bf16 in fp32, see `pipeline.training.kernels.fp32_matmul`: true, false or "auto".
        layout: how parameters lie over the processes.
        knobs: of this launch, those that bear on memory.
    """

    cpu: bool
    attention: str
    checkpointing: str
    compile: bool | str
    loggers: Sequence[str]
    loss_chunk: int
    preflight: bool
    fp32_matmul: bool | str
    layout: Layout
    knobs: Knobs


def launch_options(
    launch: Mapping[str, Any], directory: Path, progress: Callable[..., None], should_stop: Callable[[], bool]
) -> tuple[Runtime, Device]:
    """What `launch` says of how a run is carried out, and of where.

    Raises:
        ValueError: a knob that is not known.
    """
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
    return runtime, Device(**{key: launch[key] for key in _COPIED}, layout=layout, knobs=Knobs.of(launch))
