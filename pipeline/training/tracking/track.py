"""What is measured along a run, and what follows: the section `track` of conf/training. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.typed import check_fields

DOMAIN, DRIFT = "domain", "drift"
UNITS = {DOMAIN: "bits/byte", DRIFT: "nats/token"}
"""The measures, of all of which less is better."""
FOR_THE_GRAPH = ("data", "samples")
"""Keys of the section that say what is measured on; they become inputs of the stage."""


@dataclass(frozen=True)
class Track:
    """Measured before the first step, every `every` steps and after the last, on the weights of that step.

    `domain` is bits per byte of held-out documents, `drift` KL(base || model) in nats per token over the whole
    vocabulary, on samples of the base: the model without parents that this one came from. Both are computed as a
    validation is, in the run's own precision (logits and what follows from them in fp32).

    Attributes:
        every: optimizer steps.
        measures: names of `UNITS`.
        domain_tokens, document_tokens: of the documents at most, and of the head of each that is read, which is no
            longer than a row of training.
        drift_tokens: of the samples at most, in whole samples; the base's logits of them are held in memory, 4 bytes
            for each token and row of the vocabulary.
        keep_best: the measure whose best step gives the weights that are saved, of the steps that keep within
            `stop_if`; None: the last step does.
        stop_if: measure -> largest value; the run ends at the first measured step with a larger one.
    """

    every: int
    measures: Sequence[str]
    domain_tokens: int
    document_tokens: int
    drift_tokens: int
    keep_best: str | None
    stop_if: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: naming the key, its value and what is required.
        """
        for key in ("every", "domain_tokens", "drift_tokens"):
            if getattr(self, key) < 1:
                off = "; null tracks nothing" if key == "every" else ""
                raise ValueError(f"track.{key}={getattr(self, key)} must be at least 1{off}")
        if self.document_tokens < 2:
            raise ValueError(f"track.document_tokens={self.document_tokens} must be at least 2")
        known = ", ".join(UNITS)
        if unknown := [name for name in self.measures if name not in UNITS]:
            raise ValueError(f"track.measures has {unknown[0]!r}, which is not known; use {known}")
        if not self.measures or len(set(self.measures)) < len(self.measures):
            raise ValueError(f"track.measures={list(self.measures)} must name {known}, or one of them, each once")
        wanted = {"keep_best": [self.keep_best] if self.keep_best else [], "stop_if": list(self.stop_if)}
        for key, names in wanted.items():
            if untracked := [name for name in names if name not in self.measures]:
                raise ValueError(
                    f"track.{key} names {untracked[0]!r}, which is not tracked; use one of {', '.join(self.measures)}, "
                    "or add it to track.measures"
                )
        if wrong := {name: limit for name, limit in self.stop_if.items() if not 0 < limit < math.inf}:
            raise ValueError(f"track.stop_if={wrong} must hold numbers of more than 0")

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Track | None:
        """Out of a stage's params; None if nothing is tracked.

        Raises:
            ValueError: a key or a value that cannot be run.
        """
        section = params.get("track")
        if section is None:
            return None
        names = {field.name for field in fields(cls)}
        if odd := sorted(names ^ set(section)):
            wrong = "is missing" if odd[0] in names else "is not a key"
            raise ValueError(f"track.{odd[0]} {wrong}; it has {', '.join(sorted(names))}")
        try:
            check_fields(cls, section)
        except ValueError as error:
            raise ValueError(f"track.{error}") from error
        return cls(**section)

    def steps(self, num_steps: int) -> list[int]:
        """Those after which a run of `num_steps` is measured, unless it is stopped."""
        return sorted({*range(0, num_steps, self.every), num_steps})

    def over(self, values: Mapping[str, float]) -> str | None:
        """Which limit these values are over, in words; None if none is."""
        for name, limit in self.stop_if.items():
            if not values[name] <= limit:  # nan is over any
                return f"{name} is {values[name]:.4g} {UNITS[name]}, more than track.stop_if.{name}={limit:g}"
        return None


def track_params(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section `track` as params of a stage; None where nothing is tracked, whatever else it says.

    Raises:
        ValueError: something is to follow from measures, and none is made.
    """
    track = dict(section.get("track") or {})
    track["stop_if"] = {name: limit for name, limit in (track.get("stop_if") or {}).items() if limit is not None}
    if track.get("every") is None:
        for key in ("keep_best", "stop_if"):
            if track.get(key):
                raise ValueError(f"track.{key}={track[key]!r} needs measures; set track.every to a number of steps")
        return None
    return {key: value for key, value in track.items() if key not in FOR_THE_GRAPH}


def tracked_inputs(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a training stage reads beside its model and data: role -> settings of what is made for it.

    `domain`: data whose held-out part is measured; `samples` and `base`: what a base wrote, and that base.
    """
    if (track := track_params(section)) is None:
        return {}
    own, samples = section["track"].get("data") or section.get("data"), section["track"].get("samples")
    found: dict[str, Any] = {}
    if DOMAIN in track["measures"] and own:
        found["domain"] = own
    if DRIFT in track["measures"] and samples:
        found |= {"samples": samples, "base": {}}
    return found
