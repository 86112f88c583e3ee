"""One LoRA adapter that is carried on from task to task, as TRACE trains it (arXiv 2310.06762).

A stage's model is whole: the adapter is merged into it. Beside the model lies the adapter alone, and the next stage
takes it out of the weights again and goes on with it. So the weights below it stay those that the first task began
with, up to one rounding a task in the dtype in which the model is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.architecture.adapters import adapted
from pipeline.training.methods.strategy import Lora

if TYPE_CHECKING:  # a request is checked without
    import torch

ADAPTER_FILE = "adapter.safetensors"
"""Beside the model's directory: no stage takes it along that knows nothing of it."""
_NAME = "default"  # of an adapter, as peft gives it where none is named
_SCALING = "scaling"


@dataclass(frozen=True)
class CarriedLora(Lora):
    """As `Lora`, with the adapter that the model's own training left beside it, if that was of this strategy too."""

    def carry_on(self, model: Any, source: Path) -> None:
        """Take the adapter that `source` was merged with out of its weights, and put it in the place of the new one.

        Raises:
            ValueError: that adapter is of another rank, other modules or another alpha.
        """
        import torch
        from safetensors.torch import load_file

        file = source.parent / ADAPTER_FILE
        if not file.is_file():
            return
        saved, own = load_file(file), self.carried(model)
        shapes, wanted = ({name: tuple(t.shape) for name, t in one.items()} for one in (saved, own))
        if shapes != wanted or not torch.equal(saved[_SCALING], own[_SCALING]):
            raise ValueError(
                f"the adapter in {file} cannot be carried on: strategy.rank, alpha and target_modules must be those "
                f"that it was trained with ({_told(saved)}), and are others ({_told(own)}); set these, or use "
                "strategy=lora, which begins with a new adapter"
            )
        with torch.no_grad():
            for name, module, adapted_part in adapted(model):
                for part, parameter in _parts(module).items():
                    parameter.copy_(saved[f"{name}.{part}"])
                weight = getattr(module.get_base_layer(), adapted_part)
                weight.copy_((weight.float() - module.get_delta_weight(_NAME).float()).to(weight.dtype))

    def carried(self, model: Any) -> dict[str, torch.Tensor]:
        """The adapter before it is merged, for the next stage to go on with, by its modules' names."""
        import torch

        parts = {
            f"{name}.{part}": parameter.detach().float().cpu().contiguous()
            for name, module, _ in adapted(model)
            for part, parameter in _parts(module).items()
        }
        scalings = [module.scaling[_NAME] for _, module, _ in adapted(model)]
        return {**parts, _SCALING: torch.tensor(scalings, dtype=torch.float64)}


def _parts(module: Any) -> dict[str, torch.nn.Parameter]:
    return {"A": module.lora_A[_NAME].weight, "B": module.lora_B[_NAME].weight}


def _told(adapter: dict[str, torch.Tensor]) -> str:
    ranks = sorted({tensor.shape[0] for name, tensor in adapter.items() if name.endswith(".A")})
    scalings = sorted(set(adapter[_SCALING].tolist()))
    return f"{len(adapter) // 2} modules of rank {ranks} and alpha / rank {scalings}"
