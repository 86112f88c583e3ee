"""The one training loop: post-pretraining and instruction tuning differ in their rows and their strategy only."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.records.curves import METRICS, METRICS_FILE, StepRecord, ValidationRecord
from pipeline.training.cost.throughput import NOTHING, Counts, Throughput
from pipeline.training.journal import Journal
from pipeline.training.kernels.document_separation import IGNORED
from pipeline.training.kernels.routers import Routers
from pipeline.training.methods.optim import rate_of, set_learning_rate
from pipeline.training.micro_batches import MicroBatches
from pipeline.training.parallel.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.parallel.distributed import agree, clip, whole
from pipeline.training.runtime import Row, RowStream, Runtime, StoppedError
from pipeline.training.settings import Settings
from pipeline.training.spikes import SpikeGuard
from pipeline.training.trackers import Trackers
from pipeline.training.tracking.tracker import Tracker
from pipeline.training.tracking.validation import Validation, router_summary


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
    penalties: Mapping[str, Any],
    tracker: Tracker | None = None,
    rates: Any = None,
    routers: Routers | None = None,
) -> dict[str, Any]:
    """Take `num_steps` optimizer steps, resuming from the newest checkpoint in `runtime.directory`.

    The gradient of a step is the mean over all labelled tokens of its global batch, whatever the number of processes
    and the micro batch; so is each penalty over what it counts there, times its weight. A step whose gradient is not
    finite, or that stands far out, is counted and not taken (`SpikeGuard`).

    Args:
        loss_model, optimizer: a `PackedLoss` and its optimizer, as `distribute` gave them.
        trainable: the parameters in `optimizer`, by the names under which checkpoints keep them.
        validation: rows by source.
        penalties: those of `loss_model`, and those on its parameters as `hold` gave them.
        tracker: of what is measured beside the validation loss; it may end the run before `num_steps`.
        rates: what sets parameters' learning rates along the run, as `AdaptsRates.rates` gave it.
        routers: of the model, whose load validation tells.

    Returns:
        Headline metrics: first and last validation loss, training loss, tokens, tokens per second.

    Raises:
        StoppedError: `should_stop` or the deadline said so.
        ValueError: too many steps were skipped, or a step has no label.
    """
    return _Run(
        accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime, penalties,
        tracker, rates, routers,
    ).run()  # fmt: skip


class _Run:
    def __init__(
        self, accelerator, loss_model, optimizer, trainable, stream, validation, settings, num_steps, runtime,
        penalties, tracker, rates, routers,
    ):  # fmt: skip
        self.accelerator, self.model, self.optimizer, self.trainable = accelerator, loss_model, optimizer, trainable
        self.stream, self.settings, self.num_steps, self.runtime = stream, settings, num_steps, runtime
        self.tracker, self.rates = tracker, rates
        self.micro_batches = MicroBatches(accelerator, loss_model, settings.precision, runtime.micro_batch, penalties)
        self.validation = Validation(accelerator, self.micro_batches, validation, routers)
        self.step, self.tokens, self.samples, self.losses, self.validations = 0, 0, 0, [], []
        self.routers, self.counts = {}, NOTHING
        self.measured_step: int | None = None
        self.compiling = set(runtime.compiling)
        self.checkpoints = runtime.directory / "checkpoints"
        files = (METRICS, "samples", *(["rates"] if rates else []))
        self.journal = Journal(runtime.directory, files, accelerator.is_main_process)
        self.trackers = Trackers(accelerator, runtime.directory / METRICS_FILE, self.checkpoints)
        self.spikes = SpikeGuard(settings.spike_sigmas, settings.spike_window, settings.max_skipped_steps)

    def run(self) -> dict[str, Any]:
        self._resume()
        cost, num_processes = self.runtime.cost, self.accelerator.num_processes
        self.throughput = Throughput(self.num_steps, self.step, cost, num_processes, self.counts)
        saved_at = time.monotonic()
        if self._measuring_is_due():
            self._measure()
        while not self._is_over():
            began = time.monotonic()
            if compiling := self._compiling("step"):
                self.runtime.progress(step=self.step, total=self.num_steps, note=f"the first step{compiling}")
            self._advance(self.stream.batch(self.settings.batch_size))
            self.runtime.deadline.took("step", time.monotonic() - began)
            if self._measuring_is_due():
                if agree(self.accelerator, self.runtime.deadline.reached("validation"))[0]:
                    self._save()  # what resumes from here measures first
                    raise self._stopped("stopped before the time limit")
                self._measure()
            stop, late, save = agree(
                self.accelerator,
                self.runtime.should_stop(),
                self.runtime.deadline.reached(),
                time.monotonic() - saved_at >= self.runtime.checkpoint_every_s,
            )
            if stop or late or save:
                self._save()
                saved_at = time.monotonic()
            if (stop or late) and not self._is_over():
                raise self._stopped("stopped" if stop else "stopped before the time limit")
        self.trackers.send()
        if self.tracker and self.tracker.restore(self.step) and self.validation.rows:
            self.model.eval()
            self._validated()  # of what is saved
        return self._summary()

    def _stopped(self, why: str) -> StoppedError:
        return StoppedError(f"{why} after step {self.step} of {self.num_steps}; its checkpoint is written")

    def _advance(self, rows: list[Row]) -> None:
        """One step, and what is written down of it."""
        if self.rates and self.rates.is_due(self.step):  # first, so that no checkpoint falls between it and its step
            self._set_rates()
        self._log(self._take_step(rows))
        if self.runtime.log_samples:
            spans = [row["spans"].tolist() for row in rows if "spans" in row]
            self.journal.write("samples", {"step": self.step, "rows": spans})

    def _set_rates(self) -> None:
        started = time.monotonic()
        self.runtime.progress(step=self.step, total=self.num_steps, note="learning rates by importance")
        self.journal.write("rates", {"step": self.step, **self.rates.measure()})
        self.throughput.exclude(time.monotonic() - started)

    def _is_over(self) -> bool:
        return self.step >= self.num_steps or bool(self.tracker and self.tracker.stopped)

    def _measuring_is_due(self) -> bool:
        return self.measured_step != self.step and (self._validation_is_due() or self._tracking_is_due())

    def _validation_is_due(self) -> bool:
        due = self.step == 0 or self._is_over() or self.step % self.settings.validate_every == 0
        return due and bool(self.validation.rows)

    def _tracking_is_due(self) -> bool:
        return self.tracker is not None and self.tracker.is_due(self.step, self.num_steps)

    def _compiling(self, what: str) -> str:
        """For a note of what is about to compile the blocks, once: they are compiled as they are first used."""
        compiles = what in self.compiling
        self.compiling.discard(what)
        return " (compiling)" if compiles else ""

    def _take_step(self, rows: list[Row]) -> StepRecord:
        settings, accelerator = self.settings, self.accelerator
        lr = rate_of(settings, self.step, self.num_steps)
        set_learning_rate(self.optimizer, lr)
        # Seeded by the step: dropout is then the same after a resume, with no generator state to keep.
        torch.manual_seed(settings.seed * 1_000_003 + self.step * 1_009 + accelerator.process_index)
        num_labels = sum(int((row["labels"] != IGNORED).sum()) for row in rows)
        if num_labels == 0:
            raise ValueError(
                f"step {self.step} has no labelled token; check that the data's conversations have assistant turns"
            )
        loss, penalties, grad_norm = self._gradient(rows, num_labels)
        skipped = self.spikes.reason(self.step + 1, loss, grad_norm)
        if skipped is None:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += self.throughput.add(rows)
        self.samples += sum(len(row.get("spans", ())) for row in rows)
        return StepRecord(
            step=self.step, tokens=self.tokens, samples=self.samples, labels=num_labels, loss=loss, penalties=penalties,
            lr=lr, grad_norm=grad_norm, skipped=skipped, tokens_per_s=round(self.throughput.tokens_per_s, 1),
        )  # fmt: skip

    def _gradient(self, rows: Sequence[Row], num_labels: int) -> tuple[float, dict[str, float], float]:
        """Have the clipped gradient of a global batch in the parameters.

        Returns:
            Its loss per label, each penalty per thing counted (without those that count nothing here) and the norm of
            the gradient unclipped.
        """
        accelerator = self.accelerator
        sums, counts = self.micro_batches.backward(rows, num_labels)
        norm = clip(accelerator, self.optimizer, self.trainable, self.settings.max_grad_norm)
        # Summed over the processes, so that all of them decide about the step by the same numbers.
        loss, *totals, norm = accelerator.reduce(torch.cat([sums, whole(norm).to(sums).reshape(1)]), "sum").tolist()
        named = zip(self.micro_batches.names, totals, counts, strict=True)
        means = {name: total / count for name, total, count in named if count}
        return loss / num_labels, means, norm / accelerator.num_processes

    def _measure(self) -> None:
        """Measure what is tracked, and validate; in evaluation mode."""
        started = time.monotonic()
        self.model.eval()
        if self.tracker is not None and self._tracking_is_due():
            self.runtime.progress(step=self.step, total=self.num_steps, note="tracking")
            self.journal.write(METRICS, self.tracker.measure(self.step, self.tokens).to_json())
        if self._validation_is_due():  # after what may have ended the run
            self.journal.write(METRICS, self._validated().to_json())
        self.model.train()
        self.measured_step = self.step
        took = time.monotonic() - started
        self.throughput.exclude(took)
        self.runtime.deadline.took("validation", took)

    def _validated(self) -> ValidationRecord:
        def announce(source: str) -> None:
            note = f"validating on {source}{self._compiling('validation')}"
            self.runtime.progress(step=self.step, total=self.num_steps, note=note)

        record = self.validation.measure(self.step, self.tokens, announce)
        self.validations, self.routers = [*self.validations, record.val_loss], dict(record.routers)
        return record

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
                "routers": self.routers,
                "counts": self.throughput.counts and vars(self.throughput.counts),
                "measured_step": self.measured_step,
                "tracked": self.tracker.state_dict() if self.tracker else None,
                "rates": self.rates.state_dict() if self.rates else None,
                "durations": self.runtime.deadline.state_dict(),
                "spikes": self.spikes.state_dict(),
                "stream": self.stream.state_dict(),
                "journal": self.journal.lengths(),
            }
        keep = self.runtime.keep_checkpoints
        save_checkpoint(self.checkpoints, self.step, self.trainable, self.optimizer, state, keep)
        if self.tracker:
            self.tracker.saved()
        self.trackers.send()
        self.throughput.exclude(time.monotonic() - started)
        self.runtime.deadline.took("save", time.monotonic() - started)

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoints, self.trainable, self.optimizer)
        self.journal.cut(state["journal"] if state else {})
        if self.tracker:
            self.tracker.load_state_dict(state and state["tracked"])
        if state:
            if self.rates:
                self.rates.load_state_dict(state["rates"])
            self.step, self.tokens, self.samples = state["step"], state["tokens"], state["samples"]
            self.losses, self.validations = state["losses"], state["validations"]
            self.routers, self.counts = state.get("routers", {}), Counts.read(state.get("counts"))
            self.measured_step = state["measured_step"]
            self.runtime.deadline.load_state_dict(state.get("durations", {}))
            self.spikes.load_state_dict(state["spikes"])
            self.stream.load_state_dict(state["stream"])
            self.runtime.progress(step=self.step, total=self.num_steps, note=f"resumed at step {self.step}")

    def _summary(self) -> dict[str, Any]:
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return {
            "num_steps": self.step,
            "num_tokens": self.tokens,
            "num_samples": self.samples,
            "num_skipped_steps": self.spikes.num_skipped,
            "train_loss": sum(tail) / len(tail) if tail else None,
            "val_loss_before": self.validations[0] if self.validations else None,
            "val_loss": self.validations[-1] if self.validations else None,
            "tokens_per_s": round(self.throughput.tokens_per_s, 1),
            **router_summary(self.routers),
            **self.throughput.flops(),
            **(self.tracker.summary(self.step, self.num_steps, self.settings) if self.tracker else {}),
        }
