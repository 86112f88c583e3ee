"""Methods compared at equal gain: sentences, figure and table of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.reporting.compare import Comparison
from pipeline.reporting.figures.frontier import frontier_plot
from pipeline.reporting.frontier import Frontier, frontiers
from pipeline.reporting.pages.page import Section
from pipeline.reporting.plain import plain
from pipeline.reporting.statistics.frontier import Level
from pipeline.reporting.tables.frontier import frontier_table, methods_table
from pipeline.reporting.tables.wording import listing, number

Groups = Mapping[str, Mapping[str, str | None]]
"""What the methods of a comparison have in common -> see `frontiers`; none: one comparison of all."""


def frontier_sections(
    comparison: Comparison, directory: Path, seed: int, groups: Groups | None = None
) -> list[Section]:
    """Of each group a section where at least two methods have several learning rates, and one of what each costs.

    Figures go to `directory`.
    """
    sections = []
    asked: list[tuple[str, Mapping[str, str | None] | None]] = [*groups.items()] if groups else [("", None)]
    for i, (title, group) in enumerate(asked):
        if found := frontiers(comparison, seed, group):
            sections.append(_section(comparison, found, title, directory, f"frontier{i or ''}"))
            if title:
                sections.append(_costs(comparison, found[0], title, group or {}))
    return sections


def _section(comparison: Comparison, found: Sequence[Frontier], title: str, directory: Path, name: str) -> Section:
    whole, *kinds = found
    confidence = comparison.confidence
    sentences = [_verdict(whole, confidence, title), *_by_kind(kinds, confidence), _largest(whole)]
    if whole.apart:
        sentences.append(f"Not compared, as their base or their items are others: {listing(list(whole.apart))}.")
    sentences.append(HOW)
    plot, table = frontier_plot(whole, confidence, directory, name), frontier_table(whole, confidence)
    values = {**({"group": title} if title else {}), **{one.kind: _values(one) for one in found}}
    question = "Who drifts least for the same gain" + (f", {title}" if title else "")
    return Section(f"{question}?", tuple(sentences), plot, table, True, True, values, True)


def _costs(comparison: Comparison, whole: Frontier, title: str, group: Mapping[str, str | None]) -> Section:
    """Each method at the rate of its largest gain: what it gained, kept and cost."""
    missing = [label for label in group.values() if label and label not in {one.label for one in whole.methods}]
    sentences = ["Each method is shown at the rate with its largest gain on the domain, which favours it a little."]
    sentences += [f"Not in this run, or at one rate alone: {listing(missing)}."] if missing else []
    return Section(f"Methods {title}", tuple(sentences), None, methods_table(comparison, whole, title), True, True)


HOW = (
    "Each method has a curve: its models at several learning rates (a mix: several t) without those that another beats "
    "in gain and drift at once, joined by straight lines in the gain. Nothing is said outside a curve's range. "
    "Intervals are of a bootstrap over passages and samples with the same draws for all models; they do not cover "
    "training seeds."
)


def _verdict(frontier: Frontier, confidence: float, title: str) -> str:
    if not frontier.levels:
        ranges = [f"{one.label} {_range([p.gain for p in one.curve])}" for one in frontier.methods]
        return f"No two methods share a gain, so none can be said to drift less: {'; '.join(ranges)} bits per byte."
    parts = [_won(name, frontier.levels, confidence) for name in dict.fromkeys(one.least for one in frontier.levels)]
    count = sum(len(level.behind) for level in frontier.levels)
    corrected = f" (corrected for {count} comparisons)" if count > 1 else ""
    return f"At equal gain{f' and {title}' if title else ''}, {'; '.join(parts)}{corrected}."


def _won(name: str, levels: Sequence[Level], confidence: float) -> str:
    """At which gains a method drifted least, and against which others that is more than chance at each of them."""
    own = [level for level in levels if level.least == name]
    others = ("the other" if len(levels[0].drifts) == 2 else "each other method") + " that gains as much"
    sure: dict[str, list[float]] = {}
    for level in own:
        sure.setdefault(_sure(level, confidence, others), []).append(level.gain)
    told = [f"{name} drifted least at {_gains([level.gain for level in own])} bits per byte"]
    told += [how if len(sure) == 1 else f"at {_gains(gains)} {how}" for how, gains in sure.items()]
    return ", ".join(told)


def _sure(level: Level, confidence: float, others: str) -> str:
    """Which methods the least one differs from, corrected for the number of comparisons, and which it does not."""
    beyond = [one for one, p in level.adjusted.items() if p <= 1 - confidence]
    within = [one for one in level.adjusted if one not in beyond]
    if not within or not beyond:
        return f"beyond chance against {others}" if beyond else f"within chance of {others}"
    return f"beyond chance against {listing(beyond)} and within chance of {listing(within)}"


def _by_kind(kinds: Sequence[Frontier], confidence: float) -> list[str]:
    """Whether each kind of text says the same."""
    found = []
    for one in kinds:
        least: dict[str, list[Level]] = {}
        for level in one.levels:
            least.setdefault(level.least, []).append(level)
        told = "; ".join(_least(name, levels, confidence) for name, levels in least.items())
        found.append(f"Least drift on {one.kind} texts alone: {told or 'no two methods share a gain'}.")
    return found


def _least(name: str, levels: Sequence[Level], confidence: float) -> str:
    unsure = [level.gain for level in levels if not _holds(level, confidence)]
    where = f" at {_gains(unsure)}" if 0 < len(unsure) < len(levels) else ""
    chance = f" (within chance of another{where})" if unsure else ""
    return f"{name} at {_gains([level.gain for level in levels])}{chance}"


def _holds(level: Level, confidence: float) -> bool:
    """Whether the least differs from every other method, corrected for the number of comparisons."""
    return max(level.adjusted.values()) <= 1 - confidence


def _largest(frontier: Frontier) -> str:
    """Each method's largest gain, with its rate and its drift."""
    told = []
    for method in sorted(frontier.methods, key=lambda one: -one.curve[-1].gain):
        top = method.curve[-1]
        gain, drift = number(top.gain, 4, signed=True), number(top.drift, 4)
        rate = ("a rate of " if method.swept == "lr" else "") + method.text_of(top)
        told.append(f"{method.label} {gain} at {rate}, drifting {drift}")
    return f"Largest gains, in bits per byte: {'; '.join(told)}."


def _gains(gains: Sequence[float]) -> str:
    return listing([f"{gain:g}" for gain in gains])


def _range(gains: Sequence[float]) -> str:
    low, high = (number(gain, 4, signed=True) for gain in (min(gains), max(gains)))
    return f"{low} to {high}"


def _values(frontier: Frontier) -> dict[str, Any]:
    return {
        "base": frontier.base,
        "methods": [
            {
                "method": method.label,
                "points": [
                    {"model": line.label, method.swept: rate, "gain": point.gain, "drift": point.drift}
                    for line, rate, point in zip(method.lines, method.rates, method.points, strict=True)
                ],
            }
            for method in frontier.methods
        ],
        "levels": [
            {
                "gain": level.gain,
                "least": level.least,
                "drift": {name: one and plain(one) for name, one in level.drifts.items()},
                "behind": {name: {**plain(one), "p": level.adjusted[name]} for name, one in level.behind.items()},
            }
            for level in frontier.levels
        ],
    }
