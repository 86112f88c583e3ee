"""The paper's claims as data, `claims.yaml`, and which models of a run each is about. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.reporting.paper.tables import near

FILE = Path(__file__).with_name("claims.yaml")
CHECKS = {"more": True, "no_less": True, "no_more": True, "least_at_gain": True, "rising": False}
"""Check -> whether it needs `than`."""
MEASURES = ("domain", "kept", "drift")
ROLES = ("of", "than")


@dataclass(frozen=True)
class Claim:
    """A claim; see the head of `claims.yaml`.

    Attributes:
        measures: alternatives, each one of `MEASURES` or the benchmarks whose mean it is.
        margin: unit -> how much more or less still counts as none.
    """

    name: str
    claim: str
    where: str
    paper: str
    check: str
    measures: tuple[str | tuple[str, ...], ...]
    margin: Mapping[str, float]


@dataclass(frozen=True)
class AskedClaim:
    """A claim, and the models of a run that it is about: names of its lineage, whose `each` may make several of one."""

    claim: Claim
    of: tuple[str, ...]
    than: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys((*self.of, *self.than)))


@cache
def known_claims() -> dict[str, Claim]:
    """name -> claim, of all that the file has. Raises ValueError for one of an unknown form."""
    return {name: _claim(name, found) for name, found in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()}


def check_claims(asked: Any) -> None:
    """Raise ValueError for what does not map claims to {of: models, than: models}; a claim that is null is left out."""
    if not isinstance(asked, Mapping):
        raise ValueError(f"report.claims={asked!r} must map claims to the models they are about, or be {{}}")
    for name, models in asked.items():
        if name not in known_claims():
            raise ValueError(f"report.claims names {name!r}{near(str(name), known_claims())}")
        if models is not None:
            _check_models(f"report.claims.{name}", known_claims()[name].check, models)


def check_named(asked: Mapping[str, Any], models: Mapping[str, str]) -> None:
    """Raise ValueError for a claim about a model that there is not, or about several that are not runs of one.

    Args:
        models: the names of all models, those that a run leaves out (null in its lineage) included -> the setting of
            which a name stands for several values (`each`), "" for one model.
    """
    for one in asked_claims(asked):
        key = f"report.claims.{one.claim.name}"
        for name in one.names:
            if name not in models:
                raise ValueError(
                    f"{key} is about {name!r}, and no model of this run has that name{near(name, models)}; {key}=null "
                    "leaves the claim out"
                )
            swept = models[name].rpartition(".")[2]
            if one.claim.check != "least_at_gain" and swept not in ("", "seed"):
                own = [other for other in models if other.startswith(f"{name}-")]
                raise ValueError(
                    f"{key} is about {name!r}, which stands for a model of each {swept}; name the one that is meant"
                    f"{': ' if own else ''}{', '.join(own)} (only models of several seeds are taken together)"
                )


def asked_claims(asked: Mapping[str, Any]) -> list[AskedClaim]:
    """Every claim that is asked for, in the order of the file."""
    found = {name: models for name, models in asked.items() if models is not None}
    return [
        AskedClaim(claim, *(_listed(found[name].get(role, ())) for role in ROLES))
        for name, claim in known_claims().items()
        if name in found
    ]


def claim_lines(asked: Mapping[str, Any]) -> Iterator[str]:
    """What a plan shows of the claims that the report will check."""
    for one in asked_claims(asked):
        of, than = ", ".join(one.of), ", ".join(one.than)
        yield f"claim: {one.claim.claim} ({one.claim.where}): {of}{f' against {than}' if than else ''}"


def _check_models(key: str, check: str, models: Any) -> None:
    needed = ROLES if CHECKS[check] else ROLES[:1]
    if not isinstance(models, Mapping) or set(models) != set(needed):
        raise ValueError(f"{key}={models!r} must have {' and '.join(needed)}, each with models of the run")
    for role, found in models.items():
        if not isinstance(found, str | Sequence) or not found or not all(isinstance(one, str) for one in found):
            raise ValueError(f"{key}.{role}={found!r} must be a model of the run, or a list of models")
    if check == "rising" and len(_listed(models["of"])) < 2:
        raise ValueError(f"{key}.of={models['of']!r} must list at least two models, in their order")


def _listed(found: str | Sequence[str]) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else tuple(found)


def _claim(name: str, found: Mapping[str, Any]) -> Claim:
    if found["check"] not in CHECKS:
        raise ValueError(f"{FILE.name}: {name} has the check {found['check']!r}; use one of {', '.join(CHECKS)}")
    measures = tuple(one if isinstance(one, str) else tuple(one) for one in found["measures"])
    if unknown := {one for one in measures if isinstance(one, str)} - set(MEASURES):
        raise ValueError(
            f"{FILE.name}: {name} has the measures {sorted(unknown)}; use {', '.join(MEASURES)}, or a list"
        )
    return Claim(name, **{**found, "measures": measures, "margin": found.get("margin", {})})
