"""An optimizer that is carried on from one training to the next, as a run that was not split would have it.

Beside the model of a training with `keep_optimizer` lies AdamW's state by the names of its parameters. One with
`carry_optimizer` begins with it: moments, and the count of updates that corrects their bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.records.curves import METRICS_FILE
from pipeline.training.settings import Settings
from pipeline.training.tracking.track import Track

if TYPE_CHECKING:  # a request is checked without
    import torch

FOLDER = "optimizer"
"""Beside the model's directory: no stage takes it along that knows nothing of it."""
NOT_KEPT = (
    "carry_optimizer=true goes on with the optimizer of the training before, which did not keep it; set "
    "keep_optimizer=true there (its model is trained again), or leave carry_optimizer out"
)


def trained_facts(directory: Path) -> dict[str, Any]:
    """optimizer: whether the artifact of a training kept it."""
    return {"optimizer": (directory / FOLDER).is_dir()}


def check_carried(params: Mapping[str, Any], begins_anew: bool, kept: bool | None) -> list[str]:
    """What to tell of an optimizer that is carried on.

    Args:
        begins_anew: whether the strategy makes what it trains anew in each training.
        kept: whether the training before kept it; None: the model comes from none.

    Raises:
        ValueError: it cannot be.
    """
    track = Track.of(params)
    if params.get("keep_optimizer") and track and track.keep_best:
        raise ValueError(
            f"keep_optimizer=true keeps the state of the last step, and track.keep_best={track.keep_best} the weights "
            "of another; leave one of them out"
        )
    if not params.get("carry_optimizer"):
        return []
    if begins_anew:
        raise ValueError(
            "carry_optimizer=true needs parameters that go on, and strategy lora begins with a new adapter in each "
            "training; use strategy=carried_lora"
        )
    if kept is False:
        raise ValueError(NOT_KEPT)
    return [f"optimizer   {'carried on' if kept else 'new: no training made its model'}"]


def carry_optimizer(
    settings: Settings, source: Path, trainable: Mapping[str, torch.nn.Parameter], optimizer: Any
) -> bool:
    """Put the state that the training of `source` kept into the optimizer, if settings say so; called by every process.

    Returns:
        Whether there was one. A model that no training made has none.

    Raises:
        ValueError: it was not kept, or is of other parameters.
    """
    from pipeline.training.parallel.checkpoint import load_moments

    if not settings.carry_optimizer:
        return False
    if (source.parent / FOLDER).is_dir():
        try:
            load_moments(source.parent / FOLDER, trainable, optimizer)
        except ValueError as error:
            raise ValueError(
                f"carry_optimizer=true cannot go on with the optimizer of the training before: {error}. Let both train "
                "the same parameters, or leave carry_optimizer out"
            ) from error
        return True
    if (source.parent / METRICS_FILE).is_file():
        raise ValueError(NOT_KEPT)
    return False


def keep_optimizer(
    settings: Settings, directory: Path, step: int, trainable: Mapping[str, torch.Tensor], optimizer: Any
) -> None:
    """Leave the optimizer's state in the directory of a training, if settings say so; called by every process."""
    from pipeline.training.parallel.checkpoint import save_moments

    if settings.keep_optimizer:
        save_moments(directory / FOLDER, step, trainable, optimizer)
