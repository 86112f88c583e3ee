"""What a run would do, and why: which nodes are there, which are built, and what differs from what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.engine import artifact
from pipeline.engine.errors import ArtifactError
from pipeline.engine.graph import SHORT, Node, topological

State = Literal["hit", "miss", "unneeded"]
SHOWN = 6
"""Differences that are listed; more are counted."""
_ABSENT = object()


@dataclass(frozen=True)
class Step:
    """One node of a plan.

    Attributes:
        state: hit: committed; miss: will be built; unneeded: not there, but nothing that will be built reads it.
        directory: where the artifact is or will be.
        reason: for a miss, why; empty otherwise, and unless the plan was asked to explain.
    """

    node: Node
    state: State
    directory: Path
    reason: str = ""


def plan(targets: Iterable[Node], outputs: Path, explain: bool = True) -> list[Step]:
    """What a run of `targets` would do, in order. Launches nothing and writes nothing.

    Raises:
        ArtifactError: if a directory that would be reused is damaged (see `artifact.check`).
    """
    targets = list(targets)
    nodes = topological(targets)
    found = {node: artifact.find(node, outputs) for node in nodes}
    needed = _needed(targets, found)
    siblings = cache(lambda stage: manifests(outputs, [stage]))
    steps = []
    for node in nodes:
        if directory := found[node]:
            artifact.check(directory)
            steps.append(Step(node, "hit", directory))
        elif node not in needed:
            steps.append(Step(node, "unneeded", artifact.directory_of(node, outputs)))
        else:
            missing = [role for role, source in node.inputs.items() if not found[source]]
            reason = _reason(node, missing, siblings) if explain else ""
            steps.append(Step(node, "miss", artifact.directory_of(node, outputs), reason))
    return steps


def render(steps: Sequence[Step], notes: Mapping[Node, Sequence[str]] | None = None) -> str:
    """The plan as a plain table: label, state, directory, and the reason of each miss; below it `notes` on nodes."""
    rows = [(step.node.label, step.state, f"{step.node.stage}/{step.directory.name}", step.reason) for step in steps]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {reason}".rstrip() for a, b, c, reason in rows]
    misses, hits = (sum(step.state == state for step in steps) for state in ("miss", "hit"))
    told = [note(step.node.label, (notes or {}).get(step.node, ())) for step in steps if step.state == "miss"]
    return "\n".join([*lines, f"{misses} to build, {hits} to reuse", *(f"\n{one}" for one in told if one)])


def manifests(outputs: Path, stages: Iterable[str]) -> list[dict[str, Any]]:
    """Of everything committed of these stages; damaged ones are passed over: they are nobody's input."""
    found = []
    for root in (artifact.stage_root(outputs, stage) for stage in stages):
        for directory in filter(artifact.is_committed, sorted(root.glob("*-*"))):
            with contextlib.suppress(ArtifactError):
                found.append(artifact.load_manifest(directory))
    return found


def note(label: str, lines: Sequence[str]) -> str:
    """What a stage says of a node, below its label; empty where it says nothing."""
    return "\n".join([f"{label}:", *(f"  {line}" for line in lines)]) if lines else ""


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, old value, new value) of every leaf that differs; a missing side is shown as "nothing"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{where}.{key}".lstrip("."))
    elif type(old) is not type(new) or old != new:
        yield where, "nothing" if old is _ABSENT else old, "nothing" if new is _ABSENT else new


def _needed(targets: Iterable[Node], found: dict[Node, Path | None]) -> set[Node]:
    needed, waiting = set(), list(targets)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            if not found[node]:
                waiting.extend(node.inputs.values())
    return needed


def _reason(node: Node, missing: Sequence[str], siblings: Callable[[str], list[dict[str, Any]]]) -> str:
    rebuilt = [f"input {role} is rebuilt" for role in missing]
    if len(rebuilt) > SHOWN:  # a report has dozens
        rebuilt = [*rebuilt[:2], f"and {len(rebuilt) - 2} more inputs are"]
    mine = _identity(node.version, node.params, {r: n.fingerprint for r, n in node.inputs.items() if r not in missing})
    nearest: list[tuple[str, Any, Any]] | None = None
    for manifest in siblings(node.stage):
        inputs = {r: entry["fingerprint"] for r, entry in manifest["inputs"].items() if r not in missing}
        differing = list(differences(_identity(manifest["version"], manifest["params"], inputs), mine))
        if nearest is None or len(differing) < len(nearest):
            nearest = differing
    if nearest is None:
        return "; ".join(rebuilt) or "no artifact"
    shown = [f"{path}: {_short(old)} -> {_short(new)}" for path, old, new in nearest[:SHOWN]]
    more = [f"and {len(nearest) - SHOWN} more"] if len(nearest) > SHOWN else []
    return "; ".join([*rebuilt, *shown, *more])


def _identity(version: int, params: Any, inputs: dict[str, str]) -> dict[str, Any]:
    return {"version": version, "inputs": {r: value[:SHORT] for r, value in inputs.items()}, "params": params}


def _short(value: Any) -> str:
    text = value if value == "nothing" else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
