"""Post-pretrain on domain text: by default only the new blocks. LLaMA Pro, section 3.2 and 4.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.packing.schedule import check_replay
from pipeline.engine.artifact import model_dir
from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.stage import ROOT, Stage
from pipeline.instantiation import build
from pipeline.models.architecture.facts import model_facts
from pipeline.training.parallel.carried import trained_facts
from pipeline.training.recipe import forecast_training, train, training_params
from pipeline.training.settings import Settings
from pipeline.training.tracking.track import tracked_inputs

MIXING = ("packing", "shares", "replay")


@dataclass(frozen=True)
class Params(Settings):
    """`conf/pretrain`: the settings of training, what trains, what is tracked, and how text is packed and mixed."""

    strategy: Mapping[str, Any]
    track: Mapping[str, Any] | None
    packing: str
    shares: Any
    replay: Any


STAGE = Stage(
    version=3,
    makes="model",
    inputs={"model": "model", "data": "data", "domain": "data", "samples": "samples", "base": ROOT},
    params=Params,
    resumable=True,
)
params_of, also_reads = training_params, tracked_inputs


def forecast(request: Request) -> Forecast:
    """Refuse settings that cannot be run; parameters, memory, FLOPs and time."""
    params = request.params
    if params["packing"] not in ("fill", "first_fit"):
        raise ValueError(f"packing={params['packing']!r} must be fill (no padding) or first_fit (no document cut)")
    strategy = build(params["strategy"], "strategy")
    known, lines, memory_bytes = forecast_training("pretrain", request, strategy, MIXING)
    check_replay(params["replay"], request.fact("replay", "data") is not False)
    return Forecast(known, lines, memory_bytes)


def facts(directory: Path) -> Mapping[str, Any]:
    """See `model_facts` and `trained_facts`."""
    return model_facts(model_dir(directory)) | trained_facts(directory)


def run(context: worker.Context) -> dict[str, Any]:
    """Train on packed documents; the loss is over every token."""
    from pipeline.evaluation.text.tracked import tracked_texts
    from pipeline.training.runtime import StoppedError

    source, data = model_dir(context.inputs["model"]), context.inputs["data"]
    base = model_dir(context.inputs["base"]) if "base" in context.inputs else None
    context.handle_stop()
    strategy = build(context.params["strategy"], "strategy")
    try:
        return train(context, source, data, strategy, MIXING, tracked_texts, base)
    except StoppedError as stopped:
        raise worker.Interrupted(str(stopped)) from stopped


if __name__ == "__main__":
    worker.main(run)
