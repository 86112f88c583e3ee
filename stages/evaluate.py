"""Score one model on one benchmark."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from pipeline.engine import worker

if TYPE_CHECKING:
    from pipeline.evaluation.base import Benchmark

VERSION = 1
SINGLE_PROCESS = True
SHARED_ROLE = "model"  # nodes with the same model run in one worker, so that it is loaded once


def check(params: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise ValueError if the benchmark's settings make no sense, or its window is longer than the model's."""
    benchmark = _benchmark(params["benchmark"])
    if "launch" in facts and hasattr(benchmark, "check_isolation"):
        benchmark.check_isolation(facts["launch"]["isolation"])
    window, longest = getattr(benchmark, "window", 0), facts.get("max_position_embeddings")
    if longest and window > longest:
        raise ValueError(f"window={window} is longer than the model's {longest} positions; use at most {longest}")


def run(context: worker.Context) -> dict[str, Any]:
    """Write items.json, one entry per scored item, and return the score over them with its standard error."""
    from pipeline.engine.artifact import model_dir
    from pipeline.evaluation.base import Inputs, score

    if not context.is_main:
        return {}
    benchmark, directory = _benchmark(context.params["benchmark"]), model_dir(context.inputs["model"])
    inputs = Inputs(context.locate, context.listing, context.inputs.get("data"), context.progress, **_judging(context))
    if prepare := getattr(benchmark, "prepare", None):  # what can be refused before a large model is loaded
        prepare(directory, inputs)
    context.progress(note="loading the model")
    model, tokenizer = _model(str(directory))
    outcome = benchmark.run(model, tokenizer, inputs)
    (context.directory / "items.json").write_text(json.dumps(outcome.to_json(), ensure_ascii=False) + "\n")
    return {**outcome.also, **score(outcome.items)._asdict(), "metric": outcome.metric}


def _judging(context: worker.Context) -> dict[str, Any]:
    launch = context.launch
    return {"isolation": launch["isolation"], "workers": launch["judges"]} if "isolation" in launch else {}


def _benchmark(settings: Mapping[str, Any]) -> Benchmark:
    try:
        return instantiate(settings, _convert_="all")
    except HydraException as error:
        raise ValueError(f"benchmark {settings.get('_target_')}: {error.__cause__ or error}") from error


@functools.lru_cache(maxsize=1)
def _model(directory: str) -> tuple[Any, Any]:
    # fp32 whatever the weights are stored in: in bf16 the same rows in another batch can differ by a whole nat.
    import torch
    from accelerate import PartialState

    from pipeline.models import load, load_tokenizer

    model = load(directory, dtype=torch.float32).to(PartialState().device)
    return model, load_tokenizer(directory)


if __name__ == "__main__":
    worker.main(run)
