"""The one training loop: post-pretraining and instruction tuning differ in their rows and their strategy only."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from pipeline.records.curves import METRICS, METRICS_FILE, StepRecord, ValidationRecord
from pipeline.training.cost.throughput import Throughput
from pipeline.training.journal import Journal
from pipeline.training.kernels.loss import IGNORED
from pipeline.training.methods.optim import learning_rate, set_learning_rate
from pipeline.training.parallel.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.parallel.distributed import clip, unsynchronized, whole
from pipeline.training.runtime import Row, RowStream, Runtime, StoppedError
from pipeline.training.settings import Settings
from pipeline.training.spikes import SpikeGuard
from pipeline.training.trackers import Trackers


def train(
    accelerator: Any,
    loss_model: torch.nn.Module,
    optimizer: Any,
    trainable: Mapping[str, torch.nn.Parameter],
    stream: RowStream,
    validation: Mapping[str, Sequence[Row]],
    settings: Settings,
    num_steps: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """Take `num_steps` optimizer steps, resuming from the newest checkpoint in `runtime.directory`.

    The gradient of a step is the mean over all labelled tokens of its global batch, whatever the number of processes
    and the micro batch. A step whose gradient is not finite, or that stands far out, is counted and not taken
    (`SpikeGuard`).

    Args:
        loss_model, optimizer: a `PackedLoss` and its optimizer, as `distribute` gave them.
        trainable: the parameters in `optimizer`, by the names under which checkpoints keep them.
        validation: rows by source.

    Returns:
        Headline metrics: first and last validation loss, training loss, tokens, tokens per second.

    Raises:
        StoppedError: `should_stop` or the deadline said so.
        ValueError: too many steps were skipped, or a step has no label.
    """
    run = _Run(accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime)
    return run.run()


class _Run:
    def __init__(self, accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime):
        self.accelerator, self.model, self.optimizer, self.trainable = accelerator, loss_model, optimizer, trainable
        self.stream, self.validation, self.settings = stream, validation, settings
        self.num_steps, self.runtime = num_steps, runtime
        self.step, self.tokens, self.samples, self.losses, self.validations = 0, 0, 0, [], []
        self.validated_step: int | None = None
        self.compiling = set(runtime.compiling)
        self.checkpoints = runtime.directory / "checkpoints"
        self.journal = Journal(runtime.directory, (METRICS, "samples"), accelerator.is_main_process)
        self.trackers = Trackers(accelerator, runtime.directory / METRICS_FILE, self.checkpoints)
        self.spikes = SpikeGuard(settings.spike_sigmas, settings.spike_window, settings.max_skipped_steps)

    def run(self) -> dict[str, Any]:
        self._resume()
        self.throughput = Throughput(self.num_steps, self.step, self.runtime.cost, self.accelerator.num_processes)
        rows = iter(self.stream)
        saved_at = time.monotonic()
        if self._validation_is_due():
            self._validate()
        while self.step < self.num_steps:
            began = time.monotonic()
            if compiling := self._compiling("step"):
                self.runtime.progress(step=self.step, total=self.num_steps, note=f"the first step{compiling}")
            self._advance([next(rows) for _ in range(self.settings.batch_size)])
            self.runtime.deadline.took("step", time.monotonic() - began)
            if self._validation_is_due():
                if self._agree(self.runtime.deadline.reached("validation"))[0]:
                    self._save()  # what resumes from here validates first
                    raise self._stopped("stopped before the time limit")
                self._validate()
            stop, late, save = self._agree(
                self.runtime.should_stop(),
                self.runtime.deadline.reached(),
                time.monotonic() - saved_at >= self.runtime.checkpoint_every_s,
            )
            if stop or late or save:
                self._save()
                saved_at = time.monotonic()
            if (stop or late) and self.step < self.num_steps:
                raise self._stopped("stopped" if stop else "stopped before the time limit")
        self.trackers.send()
        return self._summary()

    def _stopped(self, why: str) -> StoppedError:
        return StoppedError(f"{why} after step {self.step} of {self.num_steps}; its checkpoint is written")

    def _advance(self, rows: list[Row]) -> None:
        """One step, and what is written down of it."""
        self._log(self._take_step(rows))
        if self.runtime.log_samples:
            spans = [row["spans"].tolist() for row in rows if "spans" in row]
            self.journal.write("samples", {"step": self.step, "rows": spans})

    def _validation_is_due(self) -> bool:
        due = self.step in (0, self.num_steps) or self.step % self.settings.validate_every == 0
        return due and bool(self.validation) and self.validated_step != self.step

    def _compiling(self, what: str) -> str:
        """For a note of what is about to compile the blocks, once: they are compiled as they are first used."""
        compiles = what in self.compiling
        self.compiling.discard(what)
        return " (compiling)" if compiles else ""

    def _agree(self, *decisions: bool) -> list[bool]:
        """A signal or a clock may reach the processes at different steps: one that says yes decides for all."""
        if self.accelerator.num_processes == 1:
            return list(decisions)
        votes = torch.tensor(decisions, dtype=torch.int32, device=self.accelerator.device)
        return [bool(v) for v in self.accelerator.reduce(votes, "sum")]

    def _take_step(self, rows: list[Row]) -> StepRecord:
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
        loss, grad_norm = self._gradient(rows, num_labels)
        skipped = self.spikes.reason(self.step + 1, loss, grad_norm)
        if skipped is None:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += len(rows) * settings.seq_len
        self.samples += sum(len(row.get("spans", ())) for row in rows)
        self.throughput.add(rows)
        rate = round(self.throughput.tokens_per_s, 1)
        return StepRecord(self.step, self.tokens, self.samples, num_labels, loss, lr, grad_norm, skipped, rate)

    def _gradient(self, rows: Sequence[Row], num_labels: int) -> tuple[float, float]:
        """Have the clipped gradient of a global batch in the parameters; its loss per label and its norm unclipped."""
        accelerator = self.accelerator
        loss_sum = torch.zeros((), device=accelerator.device)
        micro_batches = list(self._shares(rows))
        for index, micro in enumerate(micro_batches):
            with unsynchronized(self.model) if index < len(micro_batches) - 1 else nullcontext():
                loss = self._loss(micro)
                # The processes' gradients are averaged, the labels are counted over all of them.
                accelerator.backward(loss * accelerator.num_processes / num_labels)
            loss_sum += loss.detach()
        norm = clip(accelerator, self.optimizer, self.trainable, self.settings.max_grad_norm)
        # Summed over the processes, so that all of them decide about the step by the same two numbers.
        sums = accelerator.reduce(torch.stack([loss_sum, whole(norm).to(loss_sum)]), "sum").tolist()
        return sums[0] / num_labels, sums[1] / accelerator.num_processes

    def _shares(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """This process's part of the rows in micro batches, as many for every process.

        Units that are sharded are gathered by all processes together: one that has no row left computes one more time
        and counts nothing.
        """
        index, number = self.accelerator.process_index, self.accelerator.num_processes
        mine = list(rows[index::number])
        if len(mine) < -(-len(rows) // number):
            mine.append({**rows[0], "labels": np.full_like(rows[0]["labels"], IGNORED)})
        for start in range(0, len(mine), self.runtime.micro_batch):
            yield mine[start : start + self.runtime.micro_batch]

    def _loss(self, rows: Sequence[Row]) -> torch.Tensor:
        batch = {
            key: torch.from_numpy(np.stack([row[key] for row in rows])).to(self.accelerator.device)
            for key in ("input_ids", "labels", "position_ids")
        }
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            return self.model(**batch)

    def _validate(self) -> None:
        started = time.monotonic()
        by_source: dict[str, float] = {}
        total, count = 0.0, 0
        self.model.eval()
        for source, rows in self.validation.items():
            note = f"validating on {source}{self._compiling('validation')}"
            self.runtime.progress(step=self.step, total=self.num_steps, note=note)
            loss, labels = self._validation_loss(rows)
            by_source[source] = loss / max(1, labels)
            total, count = total + loss, count + labels
        self.model.train()
        record = ValidationRecord(self.step, self.tokens, by_source, total / max(1, count))
        self.validations.append(record.val_loss)
        self.journal.write(METRICS, record.to_json())
        self.validated_step = self.step
        took = time.monotonic() - started
        self.throughput.exclude(took)
        self.runtime.deadline.took("validation", took)

    @torch.no_grad()
    def _validation_loss(self, rows: Sequence[Row]) -> tuple[float, int]:
        loss_sum = torch.zeros((), device=self.accelerator.device)
        for micro in self._shares(rows) if rows else ():
            loss_sum += self._loss(micro)
        total = self.accelerator.reduce(loss_sum, "sum").item()
        return total, sum(int((row["labels"] != IGNORED).sum()) for row in rows)

    def _log(self, record: StepRecord) -> None:
        if record.skipped is None:
            self.losses.append(record.loss)
        self.journal.write(METRICS, record.to_json())
        skipped = self.spikes.num_skipped
        self.runtime.progress(
            step=self.step,
            total=self.num_steps,
            loss=record.loss if math.isfinite(record.loss) else None,
            tokens_per_s=record.tokens_per_s,
            eta_s=self.throughput.seconds_left(self.step),
            **({"note": f"{skipped} step{'s' if skipped > 1 else ''} skipped"} if skipped else {}),
        )

    def _save(self) -> None:
        started = time.monotonic()
        state: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            state = {
                "tokens": self.tokens,
                "samples": self.samples,
                "losses": self.losses,
                "validations": self.validations,
                "validated_step": self.validated_step,
                "durations": self.runtime.deadline.state_dict(),
                "spikes": self.spikes.state_dict(),
                "stream": self.stream.state_dict(),
                "journal": self.journal.lengths(),
            }
        keep = self.runtime.keep_checkpoints
        save_checkpoint(self.checkpoints, self.step, self.trainable, self.optimizer, state, keep)
        self.trackers.send()
        self.throughput.exclude(time.monotonic() - started)
        self.runtime.deadline.took("save", time.monotonic() - started)

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoints, self.trainable, self.optimizer)
        self.journal.cut(state["journal"] if state else {})
        if state:
            self.step, self.tokens, self.samples = state["step"], state["tokens"], state["samples"]
            self.losses, self.validations = state["losses"], state["validations"]
            self.validated_step = state.get("validated_step", self.step)
            self.runtime.deadline.load_state_dict(state.get("durations", {}))
            self.spikes.load_state_dict(state["spikes"])
            self.stream.load_state_dict(state["stream"])
            self.runtime.progress(step=self.step, total=self.num_steps, note=f"resumed at step {self.step}")

    def _summary(self) -> dict[str, Any]:
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return {
            "num_steps": self.num_steps,
            "num_tokens": self.tokens,
            "num_samples": self.samples,
            "num_skipped_steps": self.spikes.num_skipped,
            "train_loss": sum(tail) / len(tail) if tail else None,
            "val_loss_before": self.validations[0] if self.validations else None,
            "val_loss": self.validations[-1] if self.validations else None,
            "tokens_per_s": round(self.throughput.tokens_per_s, 1),
            **self.throughput.flops(),
        }
