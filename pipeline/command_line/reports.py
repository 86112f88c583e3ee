"""The report over all recorded variants of a run: planned, built, and published for people."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line.selection import without_effect
from pipeline.engine.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.engine.graph import Node
    from pipeline.lineage.variant import Variant

SETTINGS = ("name", "report", "launch", "paths")
"""Sections of a config that a report needs."""


def wants_report(config: Mapping[str, Any]) -> bool:
    """Whether a run of this config ends in a report."""
    return config["stage"] == "report" and config["to"] is None


def run_report(config: Mapping[str, Any]) -> None:
    """Compare all recorded variants of this run whose artifacts are still there, and show the result.

    Raises:
        ConfigError: there is none.
        PipelineError: as `runner.run` does.
    """
    if not run_reports([config]):
        raise ConfigError(
            f"no variant of the run {config['name']!r} is finished in {config['paths']['outputs']}, so there is "
            "nothing to report yet"
        )


def run_reports(settings: Iterable[Mapping[str, Any]]) -> int:
    """The report of each run that is named, once, as the last of these settings has it; how many could be made."""
    from pipeline.engine import artifact
    from pipeline.engine.run import runner

    each = {(one["paths"]["outputs"], one["name"]): one for one in settings}
    num_made = 0
    for (folder, name), config in each.items():
        outputs, cache = Path(folder), Path(config["paths"]["cache"])
        if variants := _recorded(outputs, name):
            node = _node(config, variants)
            directory = runner.run([node], outputs, cache)[node.fingerprint]
            page = artifact.publish(directory, outputs / "reports" / name)
            print((directory / "report.md").read_text())
            print(f"report: {page / 'index.html'}")
            num_made += 1
    return num_made


def planned_report(config: Mapping[str, Any], variant: Variant) -> Node:
    """The report over this variant and all recorded ones."""
    recorded = _recorded(Path(config["paths"]["outputs"]), config["name"])
    if variant.name in recorded:
        variant.overrides = recorded[variant.name].overrides
    return _node(config, recorded | {variant.name: variant})


def _node(config: Mapping[str, Any], variants: Mapping[str, Variant]) -> Node:
    from pipeline.engine.sweep.missing import missing_cells
    from pipeline.lineage.report import in_order, report_node

    ordered = in_order(variants.values())
    recorded = {variant.name: variant.recorded_at or time.time() for variant in ordered}  # or planned just now
    sweep = missing_cells(Path(config["paths"]["outputs"]), config["name"], recorded)
    return report_node(config["report"], config["name"], ordered, config["launch"], _reference(ordered), sweep)


def _reference(variants: Sequence[Variant]) -> str | None:
    """The variant that is the method as it is configured: without overrides, or with those alone that change nothing of
    what all variants have; None where there is none."""
    from pipeline.lineage.report import PLAIN

    names = [variant.name for variant in variants]
    if PLAIN in names or len(names) < 2:
        return PLAIN if PLAIN in names else None
    shared = [word for word in variants[0].overrides if all(word in variant.overrides for variant in variants)]
    own = {variant.name: [word for word in variant.overrides if word not in shared] for variant in variants}
    is_needless = without_effect(shared)
    plain = [name for name, words in own.items() if words and all(map(is_needless, words))]
    return plain[0] if len(plain) == 1 else None


def _recorded(outputs: Path, name: str) -> dict[str, Variant]:
    """Those whose artifacts are still there, by name."""
    from pipeline.lineage.variant import load_variant

    found = map(load_variant, (outputs / "runs" / name).glob("*/graph.json"))
    return {variant.name: variant for variant in found if _is_complete(variant, outputs)}


def _is_complete(variant: Variant, outputs: Path) -> bool:
    from pipeline.engine import artifact

    return all(artifact.find(node, outputs) for node in variant.targets("report"))
