"""What a gain on the domain is set against: how far a model moved from its base, or what it kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.statistics.drift import ALL


@dataclass(frozen=True)
class Axis:
    """The second axis of a trade-off.

    Attributes:
        key, noun: tell it from the others, in file names and in titles.
        label, unit: what is on it, and in which unit.
        better: the direction in which a model is better, as an arrow of the axis.
        sentence: with `{}` for the estimate, goes on after "The tuned model ... and".
        digits: decimals.
        signed: whether a value may be negative, and so shows its sign.
        of: a model's value; None where it was not measured.
    """

    key: str
    noun: str
    label: str
    unit: str
    better: str
    sentence: str
    digits: int
    signed: bool
    of: Callable[[ModelResult], Difference | None]


def axes(comparison: Comparison) -> list[Axis]:
    """Those on which some model with a domain gain has a value; the first is the one to show first."""
    known = [axis for make in (_drift, _retention) if (axis := make(comparison)) is not None]
    return [axis for axis in known if any(map(axis.of, measured(comparison)))]


def measured(comparison: Comparison) -> list[ModelResult]:
    """The models whose gain on the domain is known."""
    return [line for line in comparison.lines if line.gains and line.gains.domain]


def drift_of_line(line: ModelResult) -> Difference | None:
    """How far a model moved from its base, over all kinds of text on which that was measured."""
    return next((found[ALL] for found in line.drift.values()), None)


def _drift(comparison: Comparison) -> Axis:
    return Axis(
        "drift", "drift", "drift from the base, KL(base || model)", "nats per token", "←",
        "moved {} away from the base", 4, False, drift_of_line,
    )  # fmt: skip


def _retention(comparison: Comparison) -> Axis | None:
    kept = next((kept for line in measured(comparison) if (kept := comparison.kept_change(line))), None)
    if kept is None:
        return None

    def change(line: ModelResult) -> Difference | None:
        found = comparison.kept_change(line)
        return found.change if found else None

    return Axis(
        "retention", "what was kept", f"kept: mean change over {kept.what} of what the base could do", kept.unit, "→",
        f"what the base could do changed by {{}}, mean over {kept.what}", kept.digits, True, change,
    )  # fmt: skip
