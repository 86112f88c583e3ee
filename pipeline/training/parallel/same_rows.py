"""Gradients of a few texts that are the same on every process: for what a method measures beside training.

Every process computes all of it, so that the numbers do not depend on how many there are and parameters may lie in any
way but DeepSpeed's. Rows are filled up to one length: compiled blocks then meet one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

_IGNORED = -100
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class SameRows:
    """Runs a `PackedLoss`, as `distribute` gave it, in evaluation mode: without dropout and penalties.

    Attributes:
        trainable: whose gradients are wanted.
        precision: fp32 or bf16.
        micro_batch: rows at once.
    """

    model: nn.Module
    trainable: Mapping[str, nn.Parameter]
    device: torch.device
    precision: str
    micro_batch: int

    @contextmanager
    def gradient(self, rows: Rows, window: int, seed: int | None = None) -> Iterator[int]:
        """Inside, the parameters have the gradient of the rows' summed loss in nats; before and after, none.

        Args:
            window: what every row is filled up to.
            seed: of tokens drawn from the model itself, each after the text before it, to be predicted in the place of
                the text's; None: the text's.

        Yields:
            How many tokens are predicted: all but the first of each row.
        """
        self.model.eval()
        for start in range(0, len(rows), self.micro_batch):
            batch = self._batch(rows[start : start + self.micro_batch], window)
            if seed is not None:
                batch["labels"] = self._drawn(batch, seed + start)
            self._run(batch).backward()
        self.model.train()
        yield sum(len(row) - 1 for row in rows)
        for parameter in self.trainable.values():
            parameter.grad = None

    def _run(self, batch: Mapping[str, torch.Tensor], **more: bool) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(**batch, **more)

    def _batch(self, rows: Rows, window: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[*row, *[row[-1]] * (window - len(row))] for row in rows])
        labels = torch.tensor([[*row[1:], *[_IGNORED] * (window - len(row) + 1)] for row in rows])
        places = torch.arange(window).expand(len(rows), window)
        named = {"input_ids": ids, "labels": labels, "position_ids": places}
        return {name: tensor.to(self.device) for name, tensor in named.items()}

    @torch.no_grad()
    def _drawn(self, batch: Mapping[str, torch.Tensor], seed: int) -> torch.Tensor:
        """Labels in the place of those of the batch, the same ones on every process."""
        chances = self._run(batch, logits=True).float().softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(seed))
        labels = batch["labels"].clone()
        labels[labels != _IGNORED] = drawn[:, 0].to(labels)
        return labels
