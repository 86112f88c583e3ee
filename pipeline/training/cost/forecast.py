"""What a training stage will cost, told before it runs: for a person who is about to wait for it. Imports no torch."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.models.architecture.shape import Shape, read_shape
from pipeline.training.cost.budget import in_steps
from pipeline.training.cost.flops import Cost, Trains, cost_of
from pipeline.training.cost.memory import Knobs, Memory, memory_of
from pipeline.training.cost.tracking import TrackingCost, tracking_cost
from pipeline.training.methods.penalty import needs_base, num_copies, with_penalties
from pipeline.training.methods.strategy import Strategy
from pipeline.training.settings import Settings, Units
from pipeline.training.tracking.track import Track

UNKNOWN_MODEL = "cost not known before the stage runs: this model's shape, or what the strategy trains in it, is not"
_ALIKE = 4  # times as many parameters, or as few: a rate then tells something of another model's
LATE = "; the steps that num_flops={:.4g} allows are counted when it starts"


class Stream(Units, Protocol):
    """The stream that a stage will train on."""

    @property
    def unit_tokens(self) -> float: ...


@dataclass(frozen=True)
class Forecast:
    """A training stage's cost.

    Attributes:
        num_steps: None where it depends on data that are not prepared yet, and is not bounded without.
        is_exact: whether there are so many steps, and not at least so many.
        unit_tokens, batch_size: of a step over all processes: what it counts, and the tokens of one.
        at_most: whether a unit has at most so many tokens, and not so many on average.
        num_processes: that share a step.
        rank: of LoRA; 0 for other strategies.
        track, tracking: what is measured along the run, and at what cost; None: nothing.
    """

    num_parameters: int
    num_trainable: int
    cost: Cost
    memory: Memory
    unit_tokens: int
    batch_size: int
    num_steps: int | None
    is_exact: bool
    at_most: bool
    num_processes: int
    rank: int = 0
    track: Track | None = None
    tracking: TrackingCost | None = None

    @property
    def step_flops(self) -> float:
        """At most: every unit one document, every token labelled."""
        return self.cost.of_rows(self.unit_tokens, self.batch_size)

    @property
    def flops(self) -> float | None:
        """Of the whole run, over all processes."""
        return None if self.num_steps is None else self.num_steps * self.step_flops

    def seconds(self, flops_per_s: float) -> float | None:
        """At this rate of needed FLOPs on each process."""
        return None if self.flops is None else self.flops / (flops_per_s * self.num_processes)


def forecast(
    shape: Shape | None,
    strategy: Strategy,
    params: Mapping[str, Any],
    launch: Mapping[str, Any],
    ahead: Callable[[], Stream] | None = None,
) -> Forecast | None:
    """The cost of a training stage with these params on a model of this shape; None where it cannot be told.

    Args:
        shape: None: not known.
        launch: the launch knobs.
        ahead: opens the stream of the prepared data, called only where the forecast depends on them; None: they are not
            prepared.

    Raises:
        ValueError: params that cannot be run.
    """
    settings, known = Settings.of(params), None if shape is None else _known(shape, strategy)
    if known is None:
        return None
    shape, trains = known
    held = needs_base(strategy.penalties), num_copies(strategy.penalties)
    memory = memory_of(shape, trains, settings, Knobs.of(launch), *held)
    by_examples = params.get("batch_unit") == "examples"
    full = settings.num_epochs is None and params.get("packing") == "fill"
    stream = ahead() if ahead and (by_examples or not (full or settings.num_steps is not None)) else None
    num_trainable, cost, track = trains.num_trainable(shape), cost_of(shape, trains), Track.of(params)
    is_exact = stream is not None or settings.num_steps is not None or full
    settings = in_steps(settings, with_penalties(cost, strategy.penalties), stream, is_exact)
    steps = settings.least_steps(full) if stream is None else settings.total_steps(stream)
    unit_tokens = settings.seq_len if stream is None else max(1, round(stream.unit_tokens))
    return Forecast(
        num_parameters=shape.num_parameters + trains.num_added(shape),
        num_trainable=num_trainable,
        cost=with_penalties(cost, strategy.penalties),
        memory=memory,
        unit_tokens=unit_tokens,
        batch_size=settings.batch_size,
        num_steps=steps,
        is_exact=is_exact,
        at_most=by_examples and stream is None,
        num_processes=launch["num_processes"],
        rank=trains.rank,
        track=track,
        tracking=tracking_cost(track, cost, settings.seq_len, steps, num_trainable, shape.vocab) if track else None,
    )


def known_shape(source: Path, strategy: Strategy) -> tuple[Shape, Trains] | None:
    """The shape of the model saved in `source` and what a strategy trains in it, where both can be told."""
    shape = read_shape(source)
    return None if shape is None else _known(shape, strategy)


def _known(shape: Shape, strategy: Strategy) -> tuple[Shape, Trains] | None:
    trains = strategy.footprint()
    found = None if trains is None else trains.of(shape)
    return found if found is None or found[1].fits(found[0]) else None


def tell(
    found: Forecast | None, params: Mapping[str, Any], earlier: Callable[[], Iterable[Mapping[str, Any]]]
) -> list[str]:
    """What to tell a person of a training stage, whatever is known of its model.

    Args:
        found: what `forecast` gave.
        params: of the stage.
        earlier: gives the manifests of training runs, whose rates are this machine's.
    """
    if found is None:
        budget = params.get("num_flops")
        return [UNKNOWN_MODEL + ("" if budget is None else LATE.format(budget))]
    return lines(found, known_rate(earlier(), socket.gethostname(), params["precision"], found.num_parameters))


def lines(found: Forecast, rate: tuple[float, str] | None) -> list[str]:
    """The forecast in a few lines; `rate` is needed FLOP/s of one process, and where that was seen."""
    share = found.num_trainable / found.num_parameters
    parameters = f"parameters  {found.num_parameters:,}; {found.num_trainable:,} train ({share:.1%})"
    parameters += f", LoRA of rank {found.rank}" if found.rank else ""
    tracking = [_tracking_line(found, rate)] if found.tracking else []
    return [parameters, _memory_line(found.memory), _flops_line(found), _time_line(found, rate), *tracking]


def known_rate(
    manifests: Iterable[Mapping[str, Any]], host: str, precision: str, num_parameters: int
) -> tuple[float, str] | None:
    """The rate of needed FLOPs that the latest committed run of this host and precision reached on each process.

    Args:
        manifests: of artifacts of training stages.
        num_parameters: of the model to be trained; matrices of a much smaller one are multiplied at another rate.
    """
    fitting = [
        manifest
        for manifest in manifests
        if manifest["provenance"].get("host") == host
        and manifest["params"].get("precision") == precision
        and manifest["metrics"].get("flops_per_s")
        and 1 / _ALIKE <= manifest["metrics"]["num_parameters"] / num_parameters <= _ALIKE
    ]
    if not fitting:
        return None
    latest = max(fitting, key=lambda manifest: manifest["provenance"].get("finished", ""))
    return latest["metrics"]["flops_per_s"], f"{latest['label']} of {latest['fingerprint'][:12]} reached here"


def _memory_line(memory: Memory) -> str:
    named = {"frozen": "frozen weights", "master": "fp32 weights", "base": "copy of the base", "starts": "penalties"}
    told = ", ".join(f"{named.get(name, name)} {size(number)}" for name, number in asdict(memory).items() if number)
    return f"memory      about {size(memory.total)} a process: {told}"


def _flops_line(found: Forecast) -> str:
    tokens = found.batch_size * found.unit_tokens
    share = found.step_flops / found.cost.six_nd(tokens)
    total = "steps not known before the data are prepared" if found.flops is None else f"{_big(found.flops)}FLOP in all"
    at_least = "" if found.is_exact else "at least "
    steps = "" if found.num_steps is None else f" x {at_least}{found.num_steps:,} steps of {tokens:,} tokens"
    most = "at most " if found.at_most else ""
    return f"FLOPs       {most}{_big(found.step_flops)}FLOP a step{steps}, {total}; {share:.0%} of 6ND"


def _time_line(found: Forecast, rate: tuple[float, str] | None) -> str:
    if rate is None or (seconds := found.seconds(rate[0])) is None:
        return "time        told after the first steps; no earlier run on this host has measured a rate at this size"
    return f"time        about {_duration(seconds)} of training at the {_big(rate[0])}FLOP/s that {rate[1]}"


def _tracking_line(found: Forecast, rate: tuple[float, str] | None) -> str:
    track, cost = found.track, found.tracking
    assert track is not None and cost is not None
    told = f"{', '.join(track.measures)} every {track.every} steps, {_big(cost.pass_flops)}FLOP each time"
    if cost.flops is not None and found.flops:
        share = cost.flops / found.flops
        told += f" x {cost.times} and once of the base, {_big(cost.flops)}FLOP in all, {share:.1%} of training"
        told += f", about {_duration(cost.flops / (rate[0] * found.num_processes))}" if rate else ""
    if cost.logits_bytes:
        told += f"; {size(cost.logits_bytes)} of memory for the base's logits"
    if cost.kept_bytes:
        told += f"; {size(cost.kept_bytes)} on the disk for each step kept, of which there are two"
    return f"tracking    {told}"


def size(num_bytes: float) -> str:
    """Binary units, three digits: 1.21 GiB."""
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if num_bytes >= 2**exponent:
            return f"{num_bytes / 2**exponent:.3g} {unit}"
    return f"{num_bytes / 2**10:.3g} KiB"


def _big(number: float) -> str:
    for exponent, sign in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if number >= 10**exponent:
            return f"{number / 10**exponent:.3g} {sign}"
    return f"{number:.3g} "


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
