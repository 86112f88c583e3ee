"""Before the first step: are there labels, does a step fit, and if not, which knob makes it fit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.training.cost.forecast import known_shape, size
from pipeline.training.cost.memory import ADAM_MOMENTS, FP32, Knobs, Memory, memory_of
from pipeline.training.kernels.document_separation import IGNORED
from pipeline.training.kernels.quantised import held_tensors
from pipeline.training.methods.penalty import needs_base, num_copies
from pipeline.training.parallel.distributed import forgotten, own_part
from pipeline.training.settings import FROZEN_BYTES, Settings

SMALLEST_CHUNK = 128
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SHORTAGE = ("can't allocate memory", "defaultcpuallocator", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Probe:
    """One step that was tried.

    Attributes:
        peak_bytes: the process's resident memory, or what CUDA's allocator held, at most.
        expected_bytes: the same once the optimizer has its state.
        limit_bytes: what this process may use.
        seconds: of one micro batch, first-time work included.
    """

    peak_bytes: int
    expected_bytes: int
    limit_bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{size(self.expected_bytes)} of {size(self.limit_bytes)}"

    def record(self) -> dict[str, Any]:
        """As metrics."""
        return {"preflight": {**asdict(self), "seconds": round(self.seconds, 3)}}


def check_labels(stream: Any, batch_size: int) -> None:
    """Raise ValueError where the first batch of a stream has no label; the stream is put back to where it stood.

    Args:
        stream: a `RowStream`.
        batch_size: units of one step.
    """
    state = stream.state_dict()
    rows = stream.batch(batch_size)
    stream.load_state_dict(state)
    if not any((row["labels"] != IGNORED).any() for row in rows):
        raise ValueError(
            f"the first batch ({len(rows)} rows) has no labelled token, so nothing would be learned from it; check "
            "that the data's conversations have assistant turns that their chat template marks, or raise seq_len so "
            "that these are not cut off"
        )


def expected_memory(source: Path, strategy: Any, settings: Settings, knobs: Knobs) -> Memory | None:
    """The estimate for training the model saved in `source`; None for a model or a strategy that has none."""
    known = known_shape(source, strategy)
    penalties = strategy.penalties
    return known and memory_of(*known, settings, knobs, needs_base(penalties), num_copies(penalties))


def expect(accelerator: Any, source: Path, strategy: Any, settings: Settings, knobs: Knobs) -> Memory | None:
    """`expected_memory`, asked before anything is loaded: a CPU's kernel kills a process that asks for too much.

    Raises:
        ValueError: weights, gradients and optimizer alone will not fit.
    """
    expected = expected_memory(source, strategy, settings, knobs)
    if expected is not None:
        check_before_loading(expected, limit_bytes(accelerator.device, _processes_here(accelerator)), settings, knobs)
    return expected


def check_before_loading(expected: Memory, limit: int, settings: Settings, knobs: Knobs) -> None:
    """Raise ValueError where weights, gradients and optimizer are estimated at more than a process may use."""
    forms = _smaller_forms(settings) if expected.frozen else []
    learned = expected.gradients + expected.optimizer
    weights = expected.state - learned
    _check_room(weights, learned, limit, "training is expected to hold", remedy(knobs, None, True, forms))


def check_state(trainable: Mapping[str, torch.Tensor], model: torch.nn.Module, limit: int, knobs: Knobs) -> None:
    """Raise ValueError where weights, gradients and optimizer alone are more than a process may use.

    Args:
        limit: bytes; see `limit_bytes`.
    """
    weights = sum(own_part(t).nbytes for t in (*model.parameters(), *held_tensors(model).values()))
    learned = _num_learned(trainable, knobs) * FP32 * (1 + ADAM_MOMENTS)
    _check_room(weights, learned, limit, "training holds", remedy(knobs, None, state_alone=True))


def _check_room(weights: int, learned: int, limit: int, what: str, advice: str) -> None:
    if weights + learned > limit:
        raise ValueError(
            f"{what} {size(weights)} of weights and {size(learned)} of gradients and optimizer state, and this process "
            f"may use {size(limit)}; {advice}"
        )


def _num_learned(trainable: Mapping[str, torch.Tensor], knobs: Knobs) -> int:
    """Numbers of which this process holds gradient and moments."""
    return sum(own_part(p).numel() for p in trainable.values()) // (knobs.shards if knobs.zero == 2 else 1)


def check_activations(expected: Memory, limit: int, seq_len: int, knobs: Knobs) -> None:
    """Raise ValueError where a step would not fit by far: a CPU's kernel kills a process that asks for too much.

    By far: half of the estimated activations count, since compiled blocks keep fewer.
    """
    if expected.state + expected.activations // 2 > limit:
        raise ValueError(
            f"a step is expected to need {size(expected.total)}, {size(expected.activations)} of it activations, and "
            f"this process may use {size(limit)}; {remedy(knobs, seq_len)}"
        )


def probe(
    accelerator: Any,
    loss_model: Any,
    optimizer: Any,
    trainable: Mapping[str, Any],
    settings: Settings,
    knobs: Knobs,
    expected: Memory | None = None,
) -> Probe:
    """Run one micro batch forward and backward, full rows of one document each, the most that a step can need.

    Nothing that bears on the result is touched: gradients are dropped, no optimizer step is taken, random generators
    are put back, and the data's stream is not read.

    Raises:
        ValueError: it does not fit (which knob to change), or its loss is not finite.
    """
    device = accelerator.device
    limit = limit_bytes(device, _processes_here(accelerator))
    check_state(trainable, loss_model, limit, knobs)
    if expected is not None and device.type == "cpu":
        check_activations(expected, limit, settings.seq_len, knobs)
    began = time.perf_counter()
    generators_kept = torch.random.fork_rng([device] if device.type == "cuda" else [])
    dropped = forgotten(loss_model, optimizer, trainable)
    with shortage_explained(settings.seq_len, knobs), generators_kept, dropped:
        peak = _run(accelerator, loss_model, settings, knobs.micro_batch)
    missing = 0 if optimizer.state else _num_learned(trainable, knobs) * FP32 * ADAM_MOMENTS
    found = Probe(peak, peak + missing, limit, time.perf_counter() - began)
    if found.expected_bytes > limit:
        raise ValueError(
            f"a step needs {size(found.expected_bytes)} and this process may use {size(limit)}; "
            f"{remedy(knobs, settings.seq_len)}"
        )
    return found


def _run(accelerator: Any, loss_model: Any, settings: Settings, micro_batch: int) -> int:
    """Forward and backward of full rows; the most memory that was held."""
    device, length = accelerator.device, settings.seq_len
    places = torch.arange(length, device=device).expand(micro_batch, length)
    ids = places % _vocab_size(loss_model)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        loss = loss_model(input_ids=ids, labels=ids, position_ids=places).sum()
    if not loss.isfinite():
        raise ValueError(
            f"the loss of a trial step is {loss.item()} with precision={settings.precision}, before anything was "
            "learned: the model computes NaN or infinity; use precision=fp32 or another checkpoint"
        )
    held = _held_bytes(device)
    (loss / ids.numel()).backward()
    return max(held, _held_bytes(device))


def limit_bytes(device: torch.device, num_processes: int = 1) -> int:
    """Bytes that this process may use on its device, what it holds already included.

    On a CPU the smaller of what the machine has free and what the control group allows, shared by the processes of this
    machine; on a GPU what is free there.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    own = psutil.Process().memory_info().rss
    allowed = own + psutil.virtual_memory().available // num_processes
    for file in map(Path, CGROUP_LIMITS):
        text = file.read_text().strip() if file.is_file() else "max"
        if text != "max":
            allowed = min(allowed, int(text) // num_processes)
    return allowed


def remedy(knobs: Knobs, seq_len: int | None, state_alone: bool = False, forms: Sequence[str] = ()) -> str:
    """What to change, what alters no result first.

    Args:
        seq_len: of the run, if a shorter one would help.
        state_alone: activations are not the reason.
        forms: in which what does not train could be held in fewer bits.
    """
    ways = [] if state_alone else list(_fewer_activations(knobs))
    if knobs.shards == 1:
        ways.append("launch=fsdp2 over several processes, which share weights and state")
    last = "train less (another strategy, fewer new blocks)" if seq_len is None else f"lower seq_len={seq_len}"
    if forms:
        last = f"set frozen_dtype={'/'.join(forms)}, or {last}"
    without = f"set {', or '.join(ways)} (the result stays the same); or " if ways else ""
    return f"{without}{last}, which changes the result"


def _smaller_forms(settings: Settings) -> list[str]:
    """Values of frozen_dtype that hold what does not train in fewer bits than the run does."""
    held = FROZEN_BYTES.get(settings.frozen_dtype or settings.precision, FP32)
    return [form for form, num_bytes in FROZEN_BYTES.items() if num_bytes < held]


def _fewer_activations(knobs: Knobs) -> Iterator[str]:
    if knobs.micro_batch > 1:
        yield f"launch.micro_batch={knobs.micro_batch // 2} (now {knobs.micro_batch})"
    if knobs.checkpointing != "full":
        yield f"launch.checkpointing=full (now {knobs.checkpointing})"
    if knobs.loss_chunk > SMALLEST_CHUNK:
        yield f"launch.loss_chunk={SMALLEST_CHUNK} (now {knobs.loss_chunk})"


def shortage_explained(seq_len: int, knobs: Knobs) -> AbstractContextManager[None]:
    """Let running out of memory in here say which knob to change.

    Raises:
        ValueError: in place of the allocator's own error, which is its cause.
    """
    return _explained(f"with launch.micro_batch={knobs.micro_batch} and seq_len={seq_len}", remedy(knobs, seq_len))


def loading_explained(settings: Settings, knobs: Knobs) -> AbstractContextManager[None]:
    """As `shortage_explained`, where a model is loaded and put on its device: no step's knob helps there."""
    return _explained("while the model was loaded", remedy(knobs, None, True, _smaller_forms(settings)))


@contextmanager
def _explained(when: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_shortage(error):
            raise
        text = str(error).strip().splitlines()
        asked = f" ({text[0]})" if text else ""
        raise ValueError(f"out of memory {when}{asked}; {advice}") from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory ran out: on a GPU, or in torch's allocator on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SHORTAGE)


def _held_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _processes_here(accelerator: Any) -> int:
    """Of this run, on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)


def _vocab_size(loss_model: Any) -> int:
    configs: Iterator[Any] = (getattr(module, "config", None) for module in loss_model.modules())
    return next(int(config.vocab_size) for config in configs if hasattr(config, "vocab_size"))
