"""The loss on held-out rows, and how the tokens there are shared out among the experts of a mixture.

Shapes: L routers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pipeline.records.curves import ValidationRecord
from pipeline.records.expansion import split_name
from pipeline.training.cost.throughput import padding_of
from pipeline.training.kernels.document_separation import IGNORED
from pipeline.training.kernels.routers import Routers
from pipeline.training.micro_batches import MicroBatches
from pipeline.training.runtime import Row


class Validation:
    """Measures a model as it trains, without penalties; in evaluation mode.

    Args:
        rows: by source.
        routers: of the model, whose load is measured too; None: it has none.
    """

    def __init__(
        self,
        accelerator: Any,
        micro_batches: MicroBatches,
        rows: Mapping[str, Sequence[Row]],
        routers: Routers | None = None,
    ) -> None:
        self.rows = rows
        self._accelerator, self._micro_batches, self._routers = accelerator, micro_batches, routers

    def measure(self, step: int, tokens: int, announce: Callable[[str], None]) -> ValidationRecord:
        """The record after a step and so many tokens; `announce` is told each source before it is read."""
        by_source: dict[str, float] = {}
        total, count, loads = 0.0, 0, []
        for source, rows in self.rows.items():
            announce(source)
            loss, *chosen = self._sums(rows)
            labels = sum(int((row["labels"] != IGNORED).sum()) for row in rows)
            by_source[source] = loss / max(1, labels)
            total, count = total + loss, count + labels
            loads += [torch.tensor(chosen, dtype=torch.float64)] if chosen else []
        routers = self._of_routers(torch.stack(loads).sum(0)) if loads else {}
        return ValidationRecord(step, tokens, by_source, total / max(1, count), routers)

    def _sums(self, rows: Sequence[Row]) -> list[float]:
        """Of all processes: the loss, and how many tokens chose each expert."""
        batches = self._micro_batches
        found = batches.loss_and_load(rows) if self._routers and rows else batches.loss_sum(rows)
        return self._accelerator.reduce(found.reshape(-1), "sum").tolist()

    def _of_routers(self, load: torch.Tensor) -> dict[str, Any]:
        """Each block's load by expert, its entropy, and which share of the choices that were due was not made.

        Load and entropy are shares: 1/E each, and 1, where all experts get as many tokens.
        """
        assert self._routers is not None
        tokens = sum(int((~padding_of(row)).sum()) for rows in self.rows.values() for row in rows)
        load_LE = load.view(len(self._routers.names), -1)
        found: dict[str, Any] = {}
        for name, load_E in zip(self._routers.names, load_LE, strict=True):
            place = split_name(name)
            block = name if place is None else str(place[1])
            share_E = load_E / load_E.sum().clamp(min=1)
            found[f"load/{block}"] = [round(one, 6) for one in share_E.tolist()]
            found[f"entropy/{block}"] = torch.special.entr(share_E).sum().item() / math.log(load_LE.shape[1])
        due = tokens * self._routers.top_k * len(load_LE)
        return {**found, "dropped": 1 - load_LE.sum().item() / max(1, due)}


def router_summary(record: Mapping[str, Any]) -> dict[str, float]:
    """Headline metrics of what was measured last of the routers; empty where nothing was."""
    entropies = [value for name, value in record.items() if name.startswith("entropy/")]
    loads = [value for name, value in record.items() if name.startswith("load/")]
    if not entropies:
        return {}
    return {
        "router_entropy": sum(entropies) / len(entropies),
        "router_entropy_min": min(entropies),
        "router_unused_experts": sum(one == 0 for load in loads for one in load),
        "router_dropped": record["dropped"],
    }
