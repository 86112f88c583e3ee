"""The one training loop: post-pretraining and instruction tuning differ in their rows and their strategy only."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.flops import Cost
from pipeline.training.loss import IGNORED
from pipeline.training.optim import learning_rate, set_learning_rate
from pipeline.training.settings import Settings
from pipeline.training.throughput import Throughput

Row = Mapping[str, np.ndarray]


class StoppedError(Exception):
    """Training was asked to stop; its checkpoint is written."""


class RowStream(Protocol):
    """An endless, resumable iterator of packed rows."""

    def __iter__(self) -> Iterator[Row]: ...
    def rows_per_pass(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out, none of which changes its result beyond the order of float sums.

    Attributes:
        directory: holds `checkpoints/` and `metrics.jsonl`.
        micro_batch: rows of one forward pass on one process.
        checkpoint_every_s: seconds between checkpoints; 0 writes one after every step.
        keep_checkpoints: how many to keep.
        progress: called with what a person wants to see.
        should_stop: asked after every step; a checkpoint is written before the loop ends.
        cost: FLOPs of the model, if they are known; for the rate that is reported.
    """

    directory: Path
    micro_batch: int
    checkpoint_every_s: float
    keep_checkpoints: int
    progress: Callable[..., None] = field(default=lambda **_: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)
    cost: Cost | None = None


def train(
    accelerator: Any,
    loss_model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    trainable: Mapping[str, torch.nn.Parameter],
    stream: RowStream,
    validation: Mapping[str, Sequence[Row]],
    settings: Settings,
    num_steps: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Take `num_steps` optimizer steps, resuming from the newest checkpoint in `runtime.directory`.

    The gradient of a step is the mean over all labelled tokens of its global batch, whatever the number of processes
    and the micro batch.

    Args:
        loss_model: a `PackedLoss`, prepared by `accelerator`.
        trainable: the parameters in `optimizer`, by the names under which checkpoints keep them.
        validation: rows by source.

    Returns:
        Headline metrics: first and last validation loss, training loss, tokens, tokens per second.

    Raises:
        StoppedError: `should_stop` said so.
        ValueError: the loss is not finite.
    """
    run = _Run(accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime)
    return run.run()


class _Run:
    def __init__(self, accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime):
        self.accelerator, self.model, self.optimizer, self.trainable = accelerator, loss_model, optimizer, trainable
        self.stream, self.validation, self.settings = stream, validation, settings
        self.num_steps, self.runtime = num_steps, runtime
        self.step, self.tokens, self.losses, self.validations = 0, 0, [], []
        self.checkpoints = runtime.directory / "checkpoints"
        self.metrics_file = runtime.directory / "metrics.jsonl"

    def run(self) -> dict[str, Any]:
        self._resume()
        self.throughput = Throughput(self.num_steps, self.step, self.runtime.cost, self.accelerator.num_processes)
        rows = iter(self.stream)
        saved_at = time.monotonic()
        if self.step == 0:
            self._validate()
        while self.step < self.num_steps:
            record = self._take_step([next(rows) for _ in range(self.settings.batch_size)])
            self._log(record)
            if self.step == self.num_steps or self.step % self.settings.validate_every == 0:
                self._validate()
            stop, save = self._agree(
                self.runtime.should_stop(), time.monotonic() - saved_at >= self.runtime.checkpoint_every_s
            )
            if stop or save:
                self._save()
                saved_at = time.monotonic()
            if stop and self.step < self.num_steps:
                raise StoppedError(f"stopped after step {self.step} of {self.num_steps}; its checkpoint is written")
        return self._summary()

    def _agree(self, *decisions: bool) -> list[bool]:
        """A signal or a clock may reach the processes at different steps: one that says yes decides for all."""
        if self.accelerator.num_processes == 1:
            return list(decisions)
        votes = torch.tensor(decisions, dtype=torch.int32, device=self.accelerator.device)
        return [bool(v) for v in self.accelerator.reduce(votes, "sum")]

    def _take_step(self, rows: list[Row]) -> dict[str, Any]:
        settings, accelerator = self.settings, self.accelerator
        lr = learning_rate(self.step, self.num_steps, settings.lr, settings.warmup_ratio, settings.min_lr_ratio)
        set_learning_rate(self.optimizer, lr)
        # Seeded by the step: dropout is then the same after a resume, with no generator state to keep.
        torch.manual_seed(settings.seed * 1_000_003 + self.step * 1_009 + accelerator.process_index)
        num_labels = sum(int((row["labels"] != IGNORED).sum()) for row in rows)
        if num_labels == 0:
            raise ValueError(
                f"step {self.step} has no labelled token; check that the data's conversations have assistant turns"
            )
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        loss_sum = torch.zeros((), device=accelerator.device)
        micro_batches = [mine[i : i + self.runtime.micro_batch] for i in range(0, len(mine), self.runtime.micro_batch)]
        for index, micro in enumerate(micro_batches):
            with accelerator.no_sync(self.model) if index < len(micro_batches) - 1 else nullcontext():
                loss = self._loss(micro)
                # The processes' gradients are averaged, the labels are counted over all of them.
                accelerator.backward(loss * accelerator.num_processes / num_labels)
            loss_sum += loss.detach()
        grad_norm = accelerator.clip_grad_norm_(list(self.trainable.values()), settings.max_grad_norm)
        loss_mean = accelerator.reduce(loss_sum, "sum").item() / num_labels
        if not math.isfinite(loss_mean) or not math.isfinite(float(grad_norm)):
            raise ValueError(
                f"step {self.step}: loss {loss_mean}, gradient norm {float(grad_norm)}; "
                f"lower the learning rate ({settings.lr})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += len(rows) * settings.seq_len
        self.throughput.add(rows)
        return {
            "step": self.step,
            "tokens": self.tokens,
            "labels": num_labels,
            "loss": loss_mean,
            "lr": lr,
            "grad_norm": float(grad_norm),
            "tokens_per_s": round(self.throughput.tokens_per_s, 1),
        }

    def _loss(self, rows: Sequence[Row]) -> torch.Tensor:
        batch = {
            key: torch.from_numpy(np.stack([row[key] for row in rows])).to(self.accelerator.device)
            for key in ("input_ids", "labels", "position_ids")
        }
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            return self.model(**batch)

    def _validate(self) -> None:
        if not self.validation:
            return
        started = time.monotonic()
        record: dict[str, Any] = {"step": self.step, "tokens": self.tokens}
        total, count = 0.0, 0
        self.model.eval()
        for source, rows in self.validation.items():
            self.runtime.progress(step=self.step, total=self.num_steps, note=f"validating on {source}")
            loss, labels = self._validation_loss(rows)
            record[f"val/{source}"] = loss / max(1, labels)
            total, count = total + loss, count + labels
        self.model.train()
        record["val_loss"] = total / max(1, count)
        self.validations.append(record["val_loss"])
        self._write(record)
        self.throughput.exclude(time.monotonic() - started)

    @torch.no_grad()
    def _validation_loss(self, rows: Sequence[Row]) -> tuple[float, int]:
        accelerator, size = self.accelerator, self.runtime.micro_batch
        loss_sum = torch.zeros((), device=accelerator.device)
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        for i in range(0, len(mine), size):
            loss_sum += self._loss(mine[i : i + size])
        return accelerator.reduce(loss_sum, "sum").item(), sum(int((row["labels"] != IGNORED).sum()) for row in rows)

    def _log(self, record: dict[str, Any]) -> None:
        self.losses.append(record["loss"])
        self._write(record)
        self.runtime.progress(
            step=self.step,
            total=self.num_steps,
            loss=record["loss"],
            tokens_per_s=record["tokens_per_s"],
            eta_s=self.throughput.seconds_left(self.step),
        )

    def _write(self, record: dict[str, Any]) -> None:
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])
        if self.accelerator.is_main_process:
            with self.metrics_file.open("a") as out:
                out.write(json.dumps(record) + "\n")

    def _save(self) -> None:
        started = time.monotonic()
        if self.accelerator.is_main_process:
            state = {
                "tokens": self.tokens,
                "losses": self.losses,
                "validations": self.validations,
                "stream": self.stream.state_dict(),
                "metrics_bytes": self.metrics_file.stat().st_size,
            }
            keep = self.runtime.keep_checkpoints
            save_checkpoint(self.checkpoints, self.step, self.trainable, self.optimizer, state, keep)
        self.accelerator.wait_for_everyone()
        self.throughput.exclude(time.monotonic() - started)

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoints, self.trainable, self.optimizer)
        if self.accelerator.is_main_process:
            # Lines after the checkpoint belong to steps that will be taken again.
            self.metrics_file.touch()
            with self.metrics_file.open("r+b") as out:
                out.truncate(state["metrics_bytes"] if state else 0)
        if state:
            self.step, self.tokens = state["step"], state["tokens"]
            self.losses, self.validations = state["losses"], state["validations"]
            self.stream.load_state_dict(state["stream"])
            self.runtime.progress(step=self.step, total=self.num_steps, note=f"resumed at step {self.step}")

    def _summary(self) -> dict[str, Any]:
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return {
            "num_steps": self.num_steps,
            "num_tokens": self.tokens,
            "train_loss": sum(tail) / len(tail),
            "val_loss_before": self.validations[0] if self.validations else None,
            "val_loss": self.validations[-1] if self.validations else None,
            "tokens_per_s": round(self.throughput.tokens_per_s, 1),
            **self.throughput.flops(),
        }
