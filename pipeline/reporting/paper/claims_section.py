"""The paper's claims as a table of the report: what it says, what was measured here, and whether the claim holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reporting.compare import Comparison
from pipeline.reporting.pages.frontier import Groups
from pipeline.reporting.pages.page import Section
from pipeline.reporting.paper.checked import FAILS, HOLDS, OPEN, UNKNOWN, CheckedClaim, checked_claims
from pipeline.reporting.paper.contrasts import Contrast
from pipeline.reporting.plain import plain
from pipeline.reporting.tables.table import Column, Entry, Table, without_column
from pipeline.reporting.tables.wording import MISSING, Unit, interval, listing, number, percent

WORDS = {
    HOLDS: ("holds", "hold"),
    FAILS: ("does not hold", "do not hold"),
    OPEN: ("cannot be told", "cannot be told"),
    UNKNOWN: ("was not measured", "were not measured"),
}
"""Verdict -> what one claim does, and what several do."""
NOT_JUDGED = "not judged"
COMMAND = "Command"
COLUMNS = tuple(Column("", title) for title in ("Measured here", "Runs", "Verdict", COMMAND, "In the paper"))


def claims_sections(
    comparison: Comparison, asked: Mapping[str, Any], seed: int, groups: Groups | None = None, may_lead: bool = False
) -> list[Section]:
    """One section where the run names claims, else none. Raises what `checked_claims` raises.

    Args:
        groups: as the report compares methods in; their labels stand here too.
        may_lead: whether the verdict is what the whole report says, if it compares trained models with each other and
            their base has been trained, too: random weights judge no claim.
    """
    all_groups = reversed([*(groups or {}).values()])  # the first that has a name counts
    named = {name: label for group in all_groups for name, label in group.items() if label}
    found = checked_claims(comparison, asked, seed, named)
    if not found:
        return []
    is_random = comparison.collection.has_random_base
    judged = [NOT_JUDGED if is_random else one.verdict(1 - comparison.confidence) for one in found]
    rows = tuple(_row(one, verdict) for one, verdict in zip(found, judged, strict=True))
    table = Table("Claims of the paper", COLUMNS, rows, "Claim", True)
    commands = list(dict.fromkeys(one.command for one in found))
    if len(commands) == 1:
        table = without_column(table, COMMAND)
    made = [f"The models are made by: {commands[0]}"] if len(commands) == 1 else []
    sentences = (_verdict(found, judged, comparison.confidence), *_missing(found), *made, _how(comparison.confidence))
    values = {"claims": [_values(one, verdict) for one, verdict in zip(found, judged, strict=True)]}
    leads = may_lead and not is_random and _compares_trained(comparison, found)
    return [Section("Which of the paper's claims hold here", sentences, None, table, True, True, values, leads)]


def _compares_trained(comparison: Comparison, found: Sequence[CheckedClaim]) -> bool:
    trained = {line.label for line in comparison.lines if line.row.training is not None}
    return any({*contrast.models} <= trained for one in found for contrast in one.contrasts)


def _how(confidence: float) -> str:
    level = percent(confidence)
    return (
        "A claim holds where every difference is as claimed, and does not where one is the other way round, beyond "
        f"chance at {level}, two-sided, after correction for all of them (Holm); what lies between cannot be told. "
        "Differences are paired by item and positive in favour of the first model, of drift too, of which less is "
        f"better; intervals are {level}, of a single run over items, of several over seeds (Student's t) and items: "
        "one run says nothing of other seeds, and where one of the two has a single run, nothing of its own."
    )


def _verdict(found: Sequence[CheckedClaim], judged: Sequence[str], confidence: float) -> str:
    noun = "claim" if len(found) == 1 else "claims"
    if NOT_JUDGED in judged:
        return f"Of {len(found)} {noun} of the paper none is judged, as the base has random weights."
    told = [f"{(n := judged.count(one))} {words[n > 1]}" for one, words in WORDS.items() if one in judged]
    count = sum(len(one.contrasts) for one in found)
    corrected = f", corrected for {count} comparisons" if count > 1 else ""
    return f"Of {len(found)} {noun} of the paper, {listing(told)} ({percent(confidence)}{corrected})."


def _missing(found: Sequence[CheckedClaim]) -> list[str]:
    parts = ((one.missing, "which this report does not have") for one in found)
    apart = ((one.apart, "with which no gain is shared") for one in found)
    unmeasured = [
        f"{one.asked.claim.claim}{_of(one)}: its models share no measure of it on the same items."
        for one in found
        if one.measure is None and not one.missing
    ]
    return [
        f"{one.asked.claim.claim}{_of(one)}: without {listing(list(names))}, {why}."
        for one, *reasons in zip(found, parts, apart, strict=True)
        for names, why in reasons
        if names
    ] + unmeasured


def _row(one: CheckedClaim, verdict: str) -> tuple[str, tuple[Entry, ...]]:
    claim = one.asked.claim
    entries = (
        Entry(_measured(one)),
        Entry(", ".join(dict.fromkeys(contrast.runs for contrast in one.contrasts)) or MISSING),
        Entry(verdict, holds=verdict in (HOLDS, FAILS)),
        Entry(one.command),
        Entry(f"{claim.paper} ({claim.where})"),
    )
    return claim.claim + _of(one), entries


def _measured(one: CheckedClaim) -> str:
    if one.measure is None or not one.contrasts:
        return MISSING
    unit, margin = one.measure.unit, -one.contrasts[0].least
    pairs = itertools.groupby(one.contrasts, lambda contrast: (contrast.of, contrast.than))
    told = "; ".join(f"{of} against {than} {_told(list(found), unit)}" for (of, than), found in pairs)
    allowed = f", {number(margin, unit.digits)} allowed" if margin else ""
    return f"{one.measure.title}, {unit.name}{allowed}: {told}"


def _told(found: Sequence[Contrast], unit: Unit) -> str:
    """Of two models: the value, or those at several gains."""
    values = [f"{number(one.value, unit.digits, signed=True)} {interval(one, unit.digits)}" for one in found]
    return ", ".join(f"{value} at {one.at}" if one.at else value for value, one in zip(values, found, strict=True))


def _of(one: CheckedClaim) -> str:
    return f" · {one.variant}" if one.variant else ""


def _values(one: CheckedClaim, verdict: str) -> dict[str, Any]:
    claim = one.asked.claim
    contrasts = [
        {**vars(c), **plain(c), "at": c.at or None, "p": p, "models": list(c.models)}
        for c, p in zip(one.contrasts, one.adjusted, strict=True)
    ]
    return {
        "name": claim.name,
        "claim": claim.claim,
        "where": claim.where,
        "paper": claim.paper,
        "variant": one.variant or None,
        "measure": one.measure and one.measure.title,
        "benchmarks": list(one.measure.names) if one.measure else [],
        "unit": one.measure and one.measure.unit.name,
        "verdict": verdict,
        "comparisons": contrasts,
        "missing": list(one.missing),
        "apart": list(one.apart),
        "command": one.command,
    }
