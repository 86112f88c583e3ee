"""Stage samples: what a model writes itself, drawn once and shared by all models that are compared with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.stage import Stage
from pipeline.instantiation import build


@dataclass(frozen=True)
class Params:
    """`samples`: the section of a benchmark that names `pipeline.evaluation.text.base_samples.BaseSamples`."""

    samples: Mapping[str, Any]


STAGE = Stage(
    version=1,
    makes="samples",
    inputs={"model": "model"},
    params=Params,
    reads_sources=True,  # prompts of the user, which may not fit
    single_process=True,
)


def forecast(request: Request) -> Forecast:
    """Refuse settings that make no sense for this model; tell if chat samples will be left out."""
    from pipeline.evaluation.text.base_samples import NO_CHAT_TEMPLATE

    samples, has_template = build(request.params["samples"], "samples"), request.fact("chat_template")
    samples.check_base(request.fact("max_position_embeddings"), has_template)
    if samples.prompts and has_template is False:
        warnings.warn(NO_CHAT_TEMPLATE, stacklevel=2)
    return Forecast()


def run(context: worker.Context) -> dict[str, Any]:
    """Write samples.jsonl and return how many samples and tokens there are of each kind."""
    import torch
    from accelerate import PartialState

    from pipeline.engine.artifact import model_dir
    from pipeline.evaluation.text.base_samples import write_samples
    from pipeline.models import load, load_tokenizer
    from pipeline.models.finite import check_finite

    if not context.is_main:
        return {}
    directory = model_dir(context.inputs["model"])
    model = load(directory, dtype=torch.float32).to(PartialState().device)
    check_finite(model)
    found = build(context.params["samples"], "samples").draw(model, load_tokenizer(directory), context.progress)
    write_samples(found, context.directory)
    kinds = dict.fromkeys(sample.kind for sample in found)
    counts = {f"num_{kind}": sum(sample.kind == kind for sample in found) for kind in kinds}
    return {**counts, "num_tokens": sum(len(sample.tokens) for sample in found)}


if __name__ == "__main__":
    worker.main(run)
