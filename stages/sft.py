"""Instruction-tune on conversations: by default all parameters, the loss on assistant turns only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

MIXING = ("overlong", "shares", "batch_unit")


@dataclass(frozen=True)
class Params(Settings):
    """`conf/sft`: the settings of training, what trains, what is tracked, what becomes of long conversations, and
    what a batch counts."""

    strategy: Mapping[str, Any]
    track: Mapping[str, Any] | None
    overlong: str
    shares: Any
    batch_unit: str


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
    from pipeline.data.packing.rows import check_overlong

    params = request.params
    check_overlong(params["overlong"])
    if params["batch_unit"] not in ("rows", "examples"):
        raise ValueError(f"batch_unit={params['batch_unit']!r} must be rows (of seq_len tokens) or examples")
    strategy = build(params["strategy"], "strategy")
    known, lines, memory_bytes = forecast_training("sft", request, strategy, MIXING)
    return Forecast(known | {"chat_template": True}, lines, memory_bytes)


def facts(directory: Path) -> Mapping[str, Any]:
    """See `model_facts` and `trained_facts`."""
    return model_facts(model_dir(directory)) | trained_facts(directory)


def run(context: worker.Context) -> dict[str, Any]:
    """Train on packed conversations; the model keeps the template that they were rendered with."""
    from pipeline.data.prepared import keep_chat_template
    from pipeline.evaluation.text.tracked import tracked_texts
    from pipeline.models import load_tokenizer
    from pipeline.training.runtime import StoppedError

    source, data = model_dir(context.inputs["model"]), context.inputs["data"]
    base = model_dir(context.inputs["base"]) if "base" in context.inputs else None
    context.handle_stop()
    strategy = build(context.params["strategy"], "strategy")
    try:
        metrics = train(context, source, data, strategy, MIXING, tracked_texts, base)
    except StoppedError as stopped:
        raise worker.Interrupted(str(stopped)) from stopped
    if context.is_main:
        keep_chat_template(data, load_tokenizer(source), context.directory / "model")
    return metrics


if __name__ == "__main__":
    worker.main(run)
