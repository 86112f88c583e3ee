"""A global batch in micro batches: each process has its part of the rows, and as many micro batches as the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from pipeline.training.cost.throughput import PADDING_SEGMENT, padding_of
from pipeline.training.kernels.document_separation import IGNORED
from pipeline.training.methods.penalty import Penalty, of_batches
from pipeline.training.methods.start_distance import StartDistance
from pipeline.training.parallel.distributed import unsynchronized
from pipeline.training.runtime import Row


class MicroBatches:
    """Runs a `PackedLoss` over this process's part of the rows.

    Args:
        model: the `PackedLoss`, as `distribute` gave it.
        precision: of the settings; bf16 computes under autocast.
        micro_batch: rows at once.
        penalties: those of `model`, and those on how far its parameters moved.
    """

    def __init__(
        self,
        accelerator: Any,
        model: torch.nn.Module,
        precision: str,
        micro_batch: int,
        penalties: Mapping[str, Penalty | StartDistance],
    ) -> None:
        self.penalties = of_batches(penalties)
        self.distances = {name: one for name, one in penalties.items() if isinstance(one, StartDistance)}
        self._accelerator, self._model, self._precision, self._micro_batch = accelerator, model, precision, micro_batch

    @property
    def names(self) -> list[str]:
        """Of the penalties, in the order in which `backward` returns them."""
        return [*self.penalties, *self.distances]

    def backward(self, rows: Sequence[Row], num_labels: int) -> tuple[torch.Tensor, list[int]]:
        """Have the gradient of a global batch in the parameters, not clipped.

        Returns:
            This process's summed loss and then its penalties' sums; what each penalty counts on all processes, by
            which the sum over them is divided.
        """
        counts = [sum(p.count(row["labels"], padding_of(row)) for row in rows) for p in self.penalties.values()]
        sums = torch.zeros(1 + len(counts), device=self._accelerator.device)
        micro_batches = list(self._shares(rows))
        for index, micro in enumerate(micro_batches):
            with unsynchronized(self._model) if index < len(micro_batches) - 1 else nullcontext():
                terms = self._loss(micro).reshape(-1)
                self._accelerator.backward(self._objective(terms, num_labels, counts))
            sums += terms.detach()
        # Once a step, on the gradient that all micro batches made: the parameters are the same in each of them.
        distances = [one.add().to(sums).reshape(1) for one in self.distances.values()]
        whole = [1 if one.is_sharded else self._accelerator.num_processes for one in self.distances.values()]
        return torch.cat([sums, *distances]), [*counts, *whole]

    @torch.no_grad()
    def loss_sum(self, rows: Sequence[Row]) -> torch.Tensor:
        """This process's summed loss, in evaluation mode without penalties."""
        total = torch.zeros((), device=self._accelerator.device)
        for micro in self._shares(rows) if rows else ():
            total += self._loss(micro)
        return total

    @torch.no_grad()
    def loss_and_load(self, rows: Sequence[Row]) -> torch.Tensor:
        """A vector of `loss_sum` and how many of this process's tokens chose each expert, router by router."""
        return torch.stack([self._loss(micro, load=True) for micro in self._shares(rows)]).sum(0)

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """The logits at the labels of each of this process's micro batches, in main memory."""
        return [self._loss(micro, logits=True).cpu() for micro in self._shares(rows)]

    @torch.no_grad()
    def divergence_sum(self, rows: Sequence[Row], base: Sequence[torch.Tensor]) -> torch.Tensor:
        """This process's sum of KL(base || model) over the labels, nats; `base`: its `logits` on the same rows."""
        total = torch.zeros((), device=self._accelerator.device)
        for micro, logits in zip(self._shares(rows), base, strict=True):
            total += self._loss(micro, logits=logits.to(self._accelerator.device))
        return total

    def _objective(self, terms: torch.Tensor, num_labels: int, counts: Sequence[int]) -> torch.Tensor:
        """A micro batch's part of what is minimised: its loss, then its penalties, each summed, as `terms` holds them.

        The processes' gradients are averaged, labels and what penalties count are counted over all of them.
        """
        number = self._accelerator.num_processes
        objective = terms[0] * number / num_labels
        for penalty, term, count in zip(self.penalties.values(), terms[1:], counts, strict=True):
            if penalty.weight and count:
                objective = objective + term * (penalty.weight * number / count)
        return objective

    def _shares(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """This process's part of the rows in micro batches, as many for every process.

        Units that are sharded are gathered by all processes together: one that has no row left computes one more time
        and counts nothing.
        """
        index, number = self._accelerator.process_index, self._accelerator.num_processes
        mine = list(rows[index::number])
        if len(mine) < -(-len(rows) // number):
            ignored, padding = (np.full_like(rows[0]["labels"], value) for value in (IGNORED, PADDING_SEGMENT))
            mine.append({**rows[0], "labels": ignored, "segment_ids": padding})
        for start in range(0, len(mine), self._micro_batch):
            yield mine[start : start + self._micro_batch]

    def _loss(self, rows: Sequence[Row], **more: torch.Tensor | bool) -> torch.Tensor:
        columns = {key: [row[key] for row in rows] for key in ("input_ids", "labels", "position_ids")}
        if self.penalties or more.get("load"):
            columns["padding"] = [padding_of(row) for row in rows]
        if images := [row["pixel_values"] for row in rows if "pixel_values" in row]:
            more["pixel_values"] = torch.from_numpy(np.concatenate(images)).to(self._accelerator.device)
        batch = {key: torch.from_numpy(np.stack(c)).to(self._accelerator.device) for key, c in columns.items()}
        with torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return self._model(**batch, **more)
