"""What all training stages share: the checks of a request, its forecast, and the way from data to a trained model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.data.general_text import ReadsGeneralText, check_bounds
from pipeline.data.packing.schedule import check_shares, check_whole
from pipeline.data.sources.files import Listing, Locate
from pipeline.training.cost.budget import in_steps
from pipeline.training.cost.memory import ZERO_STAGES
from pipeline.training.methods.penalty import check_penalties
from pipeline.training.methods.schedule import schedule_params
from pipeline.training.methods.strategy import AdaptsRates, Lora, Strategy
from pipeline.training.parallel.carried import check_carried
from pipeline.training.settings import Settings
from pipeline.training.tracking.track import DOMAIN, DRIFT, Track, track_params

if TYPE_CHECKING:  # a request is checked without
    from pipeline.training.tracking.measure import Text, Tracking

KEPT = (
    "config", "num_blocks", "model_type", "max_position_embeddings", "shape", "chat_template", "expanded", "vocabulary",
    "num_patches",
)  # fmt: skip
"""Facts about a model that training does not change."""
LATER_KEYS = ("extra_modules", "num_blocks")
"""Keys of a strategy that say nothing where they are empty."""
SAMPLES_NEEDED = "samples of the base; set track.samples, as conf/samples/base.yaml does"


class Request(Protocol):
    """A training before it runs: its params and launch, what is known of its inputs, and what earlier ones measured."""

    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def launch(self) -> Mapping[str, Any]: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...
    @property
    def earlier(self) -> Callable[[], Sequence[Mapping[str, Any]]]: ...
    def fact(self, key: str, role: str = "model") -> Any: ...


class TextsOf(Protocol):
    """Gives the texts of a measure, out of a stage's inputs by role; the tokenizer and rows are those of the model."""

    def __call__(
        self, name: str, inputs: Mapping[str, Path], tokenizer: Any, num_rows: int, track: Mapping[str, Any]
    ) -> Sequence[Text]: ...


class Workspace(Protocol):
    """What a training run is given: its params and launch, a directory to fill, and ways to report and to stop."""

    params: dict[str, Any]
    launch: dict[str, Any]
    directory: Path
    inputs: dict[str, Path]

    @property
    def locate(self) -> Locate: ...
    @property
    def listing(self) -> Listing: ...
    def progress(self, **fields: Any) -> None: ...
    def should_stop(self) -> bool: ...


def training_params(section: Mapping[str, Any]) -> dict[str, Any]:
    """The params of a section: its lengths are whole numbers (1e9 is how people write it, and the same run as
    1000000000), `track` is null wherever nothing is tracked, of a schedule only what has an effect stands there, and of
    keys that came later none that says nothing: models trained before there were these are the same.

    Raises:
        ValueError: see `track_params`.
    """
    lengths = {key: section.get(key) for key in ("num_tokens", "num_steps", "num_flops")}
    whole = {key: int(n) for key, n in lengths.items() if isinstance(n, float) and n.is_integer()}
    if isinstance(strategy := section.get("strategy"), Mapping):
        empty = [key for key in LATER_KEYS if strategy.get(key) in (None, [])]
        section = {**section, "strategy": {key: value for key, value in strategy.items() if key not in empty}}
    return {**Settings.without_defaults(schedule_params(section)), **whole, "track": track_params(section)}


def forecast_training(
    section: str, request: Request, strategy: Strategy, mixing: Sequence[str]
) -> tuple[dict[str, Any], list[str], int | None]:
    """What is known of the result; parameters, memory, FLOPs and time in lines for a person; bytes of one process.

    Args:
        section: of the config that holds the params.
        strategy: the instance that they name.
        mixing: keys of the params that say how the data are packed and mixed.

    Raises:
        ValueError: it cannot be run: what is wrong and what to change.
    """
    from pipeline.data.prepared import check_kind, stream_ahead
    from pipeline.training.cost.forecast import forecast, tell

    check_penalties(strategy.penalties, request.launch.get("sharding", "none"))
    params, facts = request.params, {key: request.fact(key) for key in KEPT}
    Settings.of(params).check_length(facts["max_position_embeddings"])
    if track := Track.of(params):
        check_tracking(track, request)
    check_kind(request.fact("kind", "data"), params.get("overlong"))
    check_shares(params["shares"], params.get("replay"), request.fact("sources", "data"))
    if (patches := request.fact("num_patches", "data")) is not None:
        check_images(patches, facts["num_patches"], params.get("packing"))
    elif facts["num_patches"] and request.fact("kind", "data") is not None:
        warnings.warn(
            f"{section}.data has no images: of text no image expert nor adapter has a gradient, and what "
            f"they stand beside is frozen; data@{section}.data=digits has some",
            stacklevel=2,
        )
    if strategy.needs_new_parameters and facts["expanded"] is False:
        raise ValueError(
            f"{section}.strategy trains what the expansion added, but its model was not expanded "
            f"(expand=none adds nothing); use expand=block, or strategy@{section}.strategy=full (or lora)"
        )
    getattr(strategy, "check", lambda *_: None)(facts["num_blocks"], facts["expanded"], facts["model_type"])
    check_general_text(strategy, params["seq_len"], request.launch.get("sharding", "none"))
    ahead = stream_ahead(request.inputs["data"].directory, params, mixing)
    begins_anew = isinstance(strategy, Lora) and not hasattr(strategy, "carry_on")
    carried = check_carried(params, begins_anew, request.fact("optimizer"))
    found = forecast(facts["shape"], strategy, params, request.launch, ahead)
    told = [*tell(found, params, request.earlier), *carried]
    known = {**facts, "optimizer": bool(params.get("keep_optimizer"))}
    return known, told, None if found is None else found.memory.total


def check_images(data: int, model: int | None, packing: str | None) -> None:
    """Refuse data of images for a model that cannot read them.

    Args:
        data, model: patches of an image; None: not known.
        packing: of the rows.

    Raises:
        ValueError: what was found, and what to change.
    """
    if model is not None and model != data:
        reads = f"one that reads images of {model} patches" if model else "a text model, which reads no image"
        raise ValueError(
            f"the data are images of {data} patches and the model is {reads}; train one of expand=visual_experts whose "
            "(image_size / patch_size)^2 is data.num_patches, or train on text"
        )
    check_whole(packing)


def check_general_text(strategy: Strategy, seq_len: int, sharding: str) -> None:
    """Refuse text in general whose rows are longer than those of training, and rates by it that cannot be set.

    Raises:
        ValueError: what was found, and what to change.
    """
    for name, reader in {"strategy": strategy, **strategy.penalties}.items():
        if isinstance(reader, ReadsGeneralText):
            check_bounds(reader)
            if reader.window > seq_len:
                raise ValueError(
                    f"window={reader.window} of {name} is more than seq_len={seq_len}, the longest row that this stage "
                    f"has memory for; use at most {seq_len}"
                )
    if isinstance(strategy, AdaptsRates) and sharding in ZERO_STAGES:
        raise ValueError(
            f"launch.sharding={sharding} cannot train with learning rates that change along the run; use none or fsdp2"
        )


def check_tracking(track: Track, request: Request) -> None:
    """Refuse what cannot be measured on this request's inputs. Raises ValueError."""
    needed = {DOMAIN: ("domain", "data of the new domain; set track.data"), DRIFT: ("samples", SAMPLES_NEEDED)}
    for name in track.measures:
        role, advice = needed[name]
        if role not in request.inputs:
            raise ValueError(f"track.measures has {name}, which needs {advice}, or leave {name} out")
    kind = request.fact("kind", "domain")
    if DOMAIN in track.measures and kind in ("chat", "image"):
        held = "conversations" if kind == "chat" else "images"
        raise ValueError(
            f"track.measures has domain, bits per byte of documents, and the data hold {held}; set track.data to data "
            "of the new domain, or leave domain out"
        )
    own, other = request.fact("shape"), request.fact("shape", "base")
    if DRIFT in track.measures and own and other and own.vocab != other.vocab:
        raise ValueError(
            f"track.measures has drift, but the model has {own.vocab} logits and its base {other.vocab}; leave it out"
        )
    if track.keep_best == DRIFT:
        warnings.warn(
            "track.keep_best=drift: a model that equals its base drifts least, so that its weights before the first "
            "step may be those kept; track.stop_if.drift is a limit",
            stacklevel=2,
        )


def train(
    workspace: Workspace,
    source: Path,
    data: Path,
    strategy: Strategy,
    mixing: Sequence[str],
    texts_of: TextsOf,
    base: Path | None,
) -> dict[str, Any]:
    """Train the model saved in `source` on prepared data, save it to `model/` in the workspace, and return metrics.

    Args:
        texts_of: returns the texts that tracking measures; not called when tracking is off.
        base: the directory of the model that drift is measured from, likewise.

    Raises:
        ValueError: see `fit`.
        StoppedError: the workspace was asked to stop.
    """
    from pipeline.data.general_text import general_rows
    from pipeline.data.prepared import open_stream, unused, validation_rows
    from pipeline.models import load_tokenizer
    from pipeline.models.architecture.embedding import embedding_rows
    from pipeline.training.cost.count import cost_of_saved
    from pipeline.training.device import launch_options
    from pipeline.training.fit import fit

    params, settings = workspace.params, Settings.of(workspace.params)
    runtime, device = launch_options(workspace.launch, workspace.directory, workspace.progress, workspace.should_stop)
    stream = open_stream(data, settings.seq_len, settings.seed, **{key: params[key] for key in mixing})
    _check_reads(source, data)
    if settings.num_flops is not None:
        settings = in_steps(settings, cost_of_saved(source, strategy), stream)
    stream.set_length(settings.total_steps(stream) * settings.batch_size, settings.last_unit(stream))
    tokenizer = load_tokenizer(source)
    validation = validation_rows(data, tokenizer, settings.seq_len, settings.validation_tokens)
    tracking = _tracking(workspace, source, texts_of, base)

    def general(reader: ReadsGeneralText) -> list[list[int]]:
        return general_rows(reader, tokenizer, embedding_rows(source), workspace.locate, workspace.listing)

    target = workspace.directory / "model"
    metrics = fit(source, target, strategy, settings, stream, validation, runtime, device, tracking, general)
    return {**metrics, **stream.summary(), "data": unused(data)}


def _check_reads(source: Path, data: Path) -> None:
    """Raises ValueError for images that the model cannot read, where that was not known before."""
    from pipeline.data.corpus import read_sources
    from pipeline.models.architecture.facts import num_patches
    from pipeline.models.directory import read_config

    manifest, config = read_sources(data), read_config(source)
    if manifest["kind"] == "image":
        check_images(manifest["num_patches"], num_patches(config), None)
        reads = [config["num_channels"], config["image_size"], config["image_size"]]
        if (reads, config["image_token_id"]) != (manifest["image_shape"], manifest["image_token_id"]):
            raise ValueError(
                f"the model reads images of {reads} in the place of token {config['image_token_id']}, the data hold "
                f"{manifest['image_shape']} and token {manifest['image_token_id']}; correct expand.num_channels, "
                "image_size and image_token, or the data's"
            )


def _tracking(workspace: Workspace, source: Path, texts_of: TextsOf, base: Path | None) -> Tracking | None:
    from pipeline.models import load_tokenizer
    from pipeline.models.architecture.embedding import embedding_rows
    from pipeline.training.tracking.measure import Tracking, measure_of

    if (track := Track.of(workspace.params)) is None:
        return None
    tokenizer, num_rows = load_tokenizer(source), embedding_rows(source)
    seq_len = workspace.params["seq_len"]
    bounds = vars(track) | {"document_tokens": min(track.document_tokens, seq_len)}
    texts = {one: texts_of(one, workspace.inputs, tokenizer, num_rows, bounds) for one in track.measures}
    return Tracking(track, [measure_of(name, found, seq_len) for name, found in texts.items()], base)
