"""What all training stages share: the checks of a request, its forecast, and the way from data to a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.data.packing.schedule import check_shares
from pipeline.training.methods.penalty import check_penalties
from pipeline.training.methods.strategy import Strategy
from pipeline.training.settings import Settings

KEPT = ("num_blocks", "max_position_embeddings", "shape", "chat_template", "expanded")
"""Facts about a model that training does not change."""


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


class Workspace(Protocol):
    """What a training run is given: its params and launch, a directory to fill, and ways to report and to stop."""

    params: dict[str, Any]
    launch: dict[str, Any]
    directory: Path

    def progress(self, **fields: Any) -> None: ...
    def should_stop(self) -> bool: ...


def whole_lengths(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section whose lengths are whole numbers: 1e9 is how people write it, and the same run as 1000000000."""
    lengths = {key: section.get(key) for key in ("num_tokens", "num_steps")}
    whole = {key: int(n) for key, n in lengths.items() if isinstance(n, float) and n.is_integer()}
    return {**section, **whole}


def forecast_training(
    section: str, request: Request, strategy: Strategy, mixing: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """What is known of the result, and parameters, memory, FLOPs and time of a training in lines for a person.

    Args:
        section: of the config that holds the params.
        strategy: the instance that they name.
        mixing: keys of the params that say how the data are packed and mixed.

    Raises:
        ValueError: it cannot be run: what is wrong and what to change.
    """
    from pipeline.data.prepared import rows_ahead
    from pipeline.training.cost.forecast import tell

    check_penalties(strategy.penalties, request.launch.get("sharding", "none"))
    params, facts = request.params, {key: request.fact(key) for key in KEPT}
    Settings.of(params).check_length(facts["max_position_embeddings"])
    check_shares(params["shares"], params.get("replay"), request.fact("sources", "data"))
    if strategy.needs_new_parameters and facts["expanded"] is False:
        raise ValueError(
            f"{section}.strategy trains what the expansion added, but its model was not expanded "
            f"(expand=none adds nothing); use expand=block, or strategy@{section}.strategy=full (or lora)"
        )
    getattr(strategy, "check", lambda *_: None)(facts["num_blocks"], facts["expanded"])
    ahead = rows_ahead(request.inputs["data"].directory, params, mixing)
    return facts, tell(facts["shape"], strategy, params, request.launch, ahead, request.earlier)


def train(workspace: Workspace, source: Path, data: Path, strategy: Strategy, mixing: Sequence[str]) -> dict[str, Any]:
    """Train the model saved in `source` on prepared data, save it to `model/` in the workspace, and return metrics.

    Raises:
        ValueError: see `fit`.
        StoppedError: the workspace was asked to stop.
    """
    from pipeline.data.prepared import open_stream, unused, validation_rows
    from pipeline.models import load_tokenizer
    from pipeline.training.device import launch_options
    from pipeline.training.fit import fit

    params, settings = workspace.params, Settings.of(workspace.params)
    runtime, device = launch_options(workspace.launch, workspace.directory, workspace.progress, workspace.should_stop)
    stream = open_stream(data, settings.seq_len, settings.seed, **{key: params[key] for key in mixing})
    stream.set_length(settings.total_steps(stream.rows_of) * settings.batch_size, settings.last_row(stream.rows_of))
    validation = validation_rows(data, load_tokenizer(source), settings.seq_len, settings.validation_tokens)
    metrics = fit(source, workspace.directory / "model", strategy, settings, stream, validation, runtime, device)
    return {**metrics, **stream.summary(), "data": unused(data)}
