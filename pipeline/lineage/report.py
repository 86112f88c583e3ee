"""The report over variants of a run: what it compares, and in which order they stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.engine.graph import SHORT, Node
from pipeline.engine.stage import find_stage
from pipeline.lineage.variant import Variant

PLAIN = "default"
"""Name of the variant without overrides."""


def report_node(
    settings: Mapping[str, Any],
    name: str,
    variants: Sequence[Variant],
    launch: Mapping[str, Any],
    reference: str | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> Node:
    """The report over all evaluations of these variants, and the curves of their training.

    What it says of models is what any of the variants asks for, and `settings` before all.

    Args:
        reference: the variant that the others are judged against.
        sweep: which cells are missing, as `engine.sweep.missing` tells it; None: none.
    """
    inputs: dict[str, Node] = {}

    def role(node: Node) -> str:
        key = f"{node.stage.rpartition('.')[2]}-{node.fingerprint[:SHORT]}"
        inputs[key] = node
        return key

    described = [
        {
            "variant": variant.name,
            **({"is_reference": True} if variant.name == reference else {}),
            "models": [
                {
                    "name": model,
                    **place.known(),
                    "model": role(variant.models[model]),
                    "evaluations": {b: role(node) for b, node in variant.evaluations[model].items()},
                }
                for model, place in variant.lineage.items()
            ],
        }
        for variant in variants
    ]
    benchmarks: dict[str, dict[str, Any]] = {}
    for variant in variants:
        for key, text in variant.benchmarks.items():
            if benchmarks.get(key, {}).get("group") != "domain":  # of one variant: then it is no retention for all
                benchmarks[key] = text
    stage = find_stage("report")
    joined = stage.joined(settings, [variant.report for variant in variants])
    params = {**joined, "name": name, "variants": described, "benchmarks": benchmarks, "sweep": sweep}
    return Node("report", f"report/{name}", stage.STAGE.version, params, inputs, {"launch": dict(launch)})


def in_order(variants: Iterable[Variant]) -> list[Variant]:
    """The one without overrides first, then by name, numbers by their value."""
    return sorted(variants, key=lambda variant: (variant.name != PLAIN, _natural(variant.name)))


def _natural(text: str) -> list[tuple[bool, float, str]]:
    """A sort key by which num_groups=6 stands before num_groups=16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(index % 2 == 0, float(part) if index % 2 else 0.0, part) for index, part in enumerate(parts)]
