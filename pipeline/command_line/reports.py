"""The report over all recorded variants of a run: planned, built, and published for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from pipeline.engine import artifact
    from pipeline.engine.run import runner

    outputs, cache, name = Path(config["paths"]["outputs"]), Path(config["paths"]["cache"]), config["name"]
    if not (variants := _recorded(outputs, name)):
        raise ConfigError(f"no variant of the run {name!r} is finished in {outputs}, so there is nothing to report yet")
    node = _node(config, variants)
    directory = runner.run([node], outputs, cache)[node.fingerprint]
    page = artifact.publish(directory, outputs / "reports" / name)
    print((directory / "report.md").read_text())
    print(f"report: {page / 'index.html'}")


def run_reports(settings: Iterable[Mapping[str, Any]]) -> None:
    """The report of each run that is named, once, as the last of these settings has it; none where none can be."""
    each = {(one["paths"]["outputs"], one["name"]): one for one in settings}
    for (outputs, name), one in each.items():
        if _recorded(Path(outputs), name):
            run_report(one)


def planned_report(config: Mapping[str, Any], variant: Variant) -> Node:
    """The report over this variant and all recorded ones."""
    recorded = _recorded(Path(config["paths"]["outputs"]), config["name"])
    return _node(config, recorded | {variant.name: variant})


def _node(config: Mapping[str, Any], variants: Mapping[str, Variant]) -> Node:
    from pipeline.lineage.report import in_order, report_node

    return report_node(config["report"], config["name"], in_order(variants.values()), config["launch"])


def _recorded(outputs: Path, name: str) -> dict[str, Variant]:
    """Those whose artifacts are still there, by name."""
    from pipeline.lineage.variant import load_variant

    found = map(load_variant, (outputs / "runs" / name).glob("*/graph.json"))
    return {variant.name: variant for variant in found if _is_complete(variant, outputs)}


def _is_complete(variant: Variant, outputs: Path) -> bool:
    from pipeline.engine import artifact

    return all(artifact.find(node, outputs) for node in variant.targets("report"))
