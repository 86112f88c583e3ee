"""Score one model on one benchmark."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class

from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.sources.kinds import sources
from pipeline.engine.stage import Stage
from pipeline.instantiation import build

if TYPE_CHECKING:
    from pipeline.evaluation.base import Benchmark, Outcome, Workspace

NO_CHAT_TEMPLATE = (
    "the model has no chat template, and no stage of this run gives it one; set the benchmark's `template` to one, "
    "instruction-tune the model (sft) and ask only models that were (`models`), or leave this benchmark out"
)


@dataclass(frozen=True)
class Params:
    """`benchmark` names a class of `pipeline.evaluation` by `_target_`; `backend` and `served_model` are given where
    another than this process runs the model."""

    benchmark: Mapping[str, Any]
    backend: str = "local"
    served_model: str | None = None


STAGE = Stage(
    version=3,
    makes="scores",
    inputs={
        "model": "model",
        "reference": "model",
        "data": "data",
        "samples": "samples",
        "parent_scores": "scores",  # of the model that this one was grown from, taken over if it computes the same
    },
    params=Params,
    single_process=True,
    resumable=True,  # answers and judgements are kept one by one as they come
    shared_role="model",  # nodes with the same model run in one worker, so that it is loaded once
)


def forecast(request: Request) -> Forecast:
    """Refuse settings of a benchmark that make no sense, and a model that cannot be asked for it."""
    from pipeline.evaluation.remote import backends
    from pipeline.evaluation.sandbox import check_isolation
    from pipeline.models.architecture.custom_models import custom_module

    params = request.params
    benchmark = _benchmark(params["benchmark"], request.settings.get("key"))
    backends.check(params.get("backend", "local"), benchmark, params.get("served_model"))
    if params.get("backend") == "vllm" and custom_module(kind := request.fact("model_type")):
        raise ValueError(f"vLLM has no {kind}, an architecture of this project; score it here, evaluate.backend=local")
    if request.launch and (limits := getattr(benchmark, "limits", None)):  # of programs that the model writes
        check_isolation(limits, request.launch["isolation"])
    if getattr(benchmark, "reads_images", False):
        _check_images(request)
    if lacking := [role for role in getattr(benchmark, "needs", ()) if role not in request.inputs]:
        raise ValueError(f"{lacking[0]} is null or missing; this benchmark sets the model against another and needs it")
    window, longest = getattr(benchmark, "window", 0), request.fact("max_position_embeddings")
    if longest and window > longest:
        raise ValueError(f"window={window} is longer than the model's {longest} positions; use at most {longest}")
    has_template = getattr(benchmark, "template", None) or request.fact("chat_template") is not False
    if getattr(benchmark, "needs_chat", False) and not has_template:
        raise ValueError(NO_CHAT_TEMPLATE)
    if endpoint := request.access.get("endpoint"):
        _check_endpoint(endpoint)
    if hasattr(benchmark, "check_rows"):  # a small file of one's own, so that a bad row costs no work
        from pipeline.evaluation.base import Workspace

        benchmark.check_rows(Workspace(request.path, request.names))
    return Forecast(memory_bytes=_weights_bytes(request))


def _check_images(request: Request) -> None:
    """Refuse images for a model that is known to read none, or others, and data without any."""
    if "data" not in request.inputs or request.fact("kind", "data") not in (None, "image"):
        raise ValueError("this benchmark needs data of images; set its data to such, as pretrain.data=digits is")
    reads, given = request.fact("num_patches"), request.fact("num_patches", "data")
    if reads == 0 or (reads and given and reads != given):
        what = f"reads images of {reads} patches, not of {given}" if reads else "is a text model and reads no images"
        raise ValueError(f"the model {what}; name those that do: the benchmark's models=[NAME, ...], null: all")


def _weights_bytes(request: Request) -> int | None:
    """Of the models that it loads, in fp32; None where a shape is not known."""
    shapes = [request.fact("shape", role) for role in ("model", "reference") if role in request.inputs]
    return None if None in shapes else sum(4 * shape.num_parameters for shape in shapes)


def check_network(params: dict[str, Any]) -> None:
    """Raise ValueError for rows of the hub that this machine cannot have; it says what to download."""
    from pipeline.evaluation.tasks.rows import reach as reach_rows

    reach_rows((source["repo"], source["revision"]) for _, source in sources(params, "hub"))


def mirror_advice(settings: Mapping[str, Any]) -> str:
    """What to download where a benchmark's mirror is not there; empty where none is missing."""
    from pipeline.evaluation.tasks.rows import mirror

    found = settings.get("splits")
    splits = found.values() if isinstance(found, Mapping) else ()
    paths = {one["source"]["path"] for one in splits if str(one.get("_target_")).endswith(".Mirror")}
    missing = [Path(path).expanduser().absolute() for path in sorted(paths) if not Path(path).expanduser().exists()]
    return "".join(f"; to put it there: {mirror(path)}" for path in missing)


def backend_for(settings: Mapping[str, Any], asked: str) -> str:
    """The backend that runs a benchmark where `asked` is wanted: `local` for one that no other can."""
    from pipeline.evaluation.remote import backends

    try:
        return backends.nearest(get_class(settings["_target_"]), asked)
    except (ImportError, ValueError, KeyError):
        return asked  # `check` says what is wrong with it


def reads_outputs_alone(settings: Mapping[str, Any]) -> bool:
    """Whether two models that compute the same have the same score: not where a benchmark looks inside a model or sets
    it against another."""
    kind = _class_of(settings)
    return kind is not None and not (getattr(kind, "needs", ()) or getattr(kind, "looks_inside", False))


def scores_gold(settings: Mapping[str, Any]) -> bool:
    """Whether a benchmark scores the loss of right answers."""
    return bool(getattr(_class_of(settings), "scores_gold", False))


def _class_of(settings: Mapping[str, Any]) -> type | None:
    """The class that a benchmark names; None where there is none, which the forecast says."""
    try:
        return get_class(settings["_target_"])
    except (ImportError, ValueError, KeyError):
        return None


def run(context: worker.Context) -> dict[str, Any]:
    """Write items.parquet, one row per scored item, and return the score over them with its standard error.

    Where right answers have a loss, `gold_bits_per_byte` is that, and `gold_margin_bits_per_byte` their margin.
    """
    from pipeline.engine.artifact import load_manifest, model_dir
    from pipeline.evaluation.base import gold_scores, score
    from pipeline.evaluation.remote.backends import SERVERS
    from pipeline.records.items import write_items

    if not context.is_main:
        return {}
    known = context.inputs.get("parent_scores")
    if known and load_manifest(context.inputs["model"])["metrics"].get("exact"):
        context.progress(note="the model computes exactly what its parent does: its scores are taken over")
        return _take_over(known, context.directory)
    benchmark, directory = _benchmark(context.params["benchmark"]), model_dir(context.inputs["model"])
    inputs = _inputs(context)
    if prepare := getattr(benchmark, "prepare", None):  # what can be refused before a large model is loaded
        prepare(directory, inputs)
    if context.params.get("backend") in SERVERS:
        outcome = _outcome_of_server(benchmark, directory, context, inputs)
    else:
        outcome = _outcome_of_process(benchmark, directory, context, inputs)
    write_items(outcome, context.directory)
    found = score(outcome.items)
    stderr = found.stderr if math.isfinite(found.stderr) else None  # a single item has none
    golds = gold_scores(outcome)
    return {**outcome.also, **found._asdict(), "stderr": stderr, "metric": outcome.metric, **golds}


def _take_over(scores: Path, directory: Path) -> dict[str, Any]:
    """Copy what another evaluation wrote; returns its metrics, and that they are."""
    from pipeline.engine.artifact import load_manifest, publish

    publish(scores, directory)
    return {**load_manifest(scores)["metrics"], "taken_over": True}


def _check_endpoint(settings: Mapping[str, Any]) -> None:
    """Refuse settings that reach nothing. A key that is not there yet is only told: it may not be needed any more."""
    from pipeline.evaluation.remote.endpoint import Endpoint

    endpoint = Endpoint.of(settings)
    try:
        endpoint.key()
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)


def _inputs(context: worker.Context) -> Workspace:
    from pipeline.engine.artifact import model_dir
    from pipeline.evaluation.base import Workspace

    launch = context.launch
    return Workspace(
        context.locate,
        context.listing,
        context.inputs.get("data"),
        context.progress,
        isolation=launch["isolation"],
        workers=launch["sandbox_workers"],
        reference=model_dir(context.inputs["reference"]) if "reference" in context.inputs else None,
        samples=context.inputs.get("samples"),
        directory=context.directory,
        endpoint=context.access.get("endpoint"),
    )


def _outcome_of_process(benchmark: Any, directory: Path, context: worker.Context, inputs: Workspace) -> Outcome:
    context.progress(note="loading the model")
    model, tokenizer = _model(str(directory))
    if context.params.get("backend") != "hf":
        return benchmark.run(model, tokenizer, inputs)
    from pipeline.evaluation.tasks.loglikelihood import EncodedHFLM

    return benchmark.score(EncodedHFLM(model, tokenizer), inputs)


def _outcome_of_server(benchmark: Any, directory: Path, context: worker.Context, inputs: Workspace) -> Outcome:
    from pipeline.evaluation.remote import backends
    from pipeline.evaluation.remote.completions import RemoteGenerator, RemoteLM
    from pipeline.models import load_tokenizer

    context.progress(note="reaching the server")
    backend, name, log = context.params["backend"], context.params.get("served_model"), context.directory / "server.log"
    tokenizer = load_tokenizer(str(directory))
    with backends.remote(backend, name, context.access["server"], directory, log) as (model, window):
        if hasattr(benchmark, "score"):
            return benchmark.score(RemoteLM(model, tokenizer, window, inputs.progress), inputs)
        return benchmark.measure(RemoteGenerator(model, tokenizer, window, inputs.progress), inputs)


def _benchmark(settings: Mapping[str, Any], key: str | None = None) -> Benchmark:
    """The benchmark of these settings; `key` is where they stand in the config."""
    return build(settings, key or f"benchmark {settings.get('_target_')}")


@functools.lru_cache(maxsize=1)
def _model(directory: str) -> tuple[Any, Any]:
    # fp32 whatever the weights are stored in: in bf16 the same rows in another batch can differ by a whole nat.
    import torch
    from accelerate import PartialState

    from pipeline.models import load, load_tokenizer
    from pipeline.models.finite import check_finite

    model = load(directory, dtype=torch.float32).to(PartialState().device)
    check_finite(model)
    return model, load_tokenizer(directory)


if __name__ == "__main__":
    worker.main(run)
