"""One configuration of a run: its models in the order in which they come to be, and the evaluations of each."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.engine.errors import ArtifactError, ConfigError
from pipeline.engine.graph import Node, topological
from pipeline.engine.stage import find_stage

EVERYTHING = "report"
"""The goal where none is given."""
AFTER = ("evaluate", EVERYTHING)
"""What comes behind the models: `stage=` of these asks for everything."""
_SLUG_LENGTH = 100


class Model(NamedTuple):
    """A model's place in the lineage: the stage that made it, role -> parent, what it is compared with, and the
    benchmark of the task that it learned, if it is one of a sequence."""

    stage: str
    parents: dict[str, str]
    reference: str | None
    task: str | None = None

    def known(self) -> dict[str, Any]:
        """As plain values; without a task where there is none."""
        return {key: value for key, value in self._asdict().items() if key != "task" or value is not None}


@dataclass
class Variant:
    """One configuration.

    Attributes:
        name: what tells it from others of its run: its overrides.
        lineage: model -> its place; parents come first.
        models: model -> node that makes it.
        evaluations: model -> benchmark -> node.
        data: label -> node of prepared data.
        benchmarks: benchmark -> title, group and note.
        with_gold: benchmarks that score the loss of right answers.
        gate: node that judges the last model against its reference, if one is asked for.
        overrides: that gave it its name; known of one that was recorded.
        report: the settings of the report that it asks for.
        recorded_at: seconds since the epoch; None: not yet.
    """

    name: str
    lineage: dict[str, Model] = field(default_factory=dict)
    models: dict[str, Node] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Node]] = field(default_factory=dict)
    data: dict[str, Node] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    with_gold: set[str] = field(default_factory=set)
    gate: Node | None = None
    overrides: tuple[str, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)
    recorded_at: float | None = None

    def targets(self, stage: str, to: str | None = None) -> list[Node]:
        """The nodes that `stage=<stage>` asks for, or `to=<model>`; the report is built apart, over a run's variants.

        Raises:
            ConfigError: no model of this configuration is made by that stage, or has that name.
        """
        if to is not None:
            if to not in self.models:
                raise ConfigError(f"to={to!r}: this run has no such model; it makes {', '.join(self.models)}")
            if stage not in (EVERYTHING, self.lineage[to].stage):
                own = self.lineage[to].stage
                raise ConfigError(f"stage={stage} and to={to} are two goals: {to} is made by stage {own}; give one")
            return [self.models[to]]
        if stage in AFTER:
            evaluations = [node for found in self.evaluations.values() for node in found.values()]
            return [*self.models.values(), *evaluations, *([self.gate] if self.gate else [])]
        if stage == "data":
            return list(self.data.values())
        if found := [self.models[name] for name, model in self.lineage.items() if model.stage == stage]:
            return found
        find_stage(stage)
        made = dict.fromkeys(model.stage for model in self.lineage.values())
        raise ConfigError(
            f"stage={stage} is asked for, but no model of this config is made by it: it is skipped ({stage}=none), or "
            f"not in the lineage; use one of {', '.join([*made, 'data', *AFTER])}"
        )

    def root(self, name: str) -> str:
        """The model without parents that this one came from, by first roles."""
        while above := next(iter(self.lineage[name].parents.values()), None):
            name = above
        return name

    def came_from(self, name: str, other: str | None) -> bool:
        """Whether a model is another one, or was made from it, in whatever role."""
        return name == other or any(self.came_from(one, other) for one in self.lineage[name].parents.values())

    def path_to(self, name: str) -> list[str]:
        """The models after its reference, up to `name`, by first roles; empty if it does not come from there."""
        reference, path = self.lineage[name].reference, []
        while name != reference:
            path.append(name)
            above = next(iter(self.lineage[name].parents.values()), None)
            if above is None:
                return []
            name = above
        return path[::-1]


def save_variant(variant: Variant, runs: Path, overrides: list[str]) -> Path:
    """Record a finished variant under `runs`, so that later reports of the same run find it: pointers only."""
    nodes = topological(variant.targets("report"))
    record = {
        "variant": variant.name,
        "overrides": overrides,
        "nodes": {
            node.fingerprint: {
                "stage": node.stage,
                "label": node.label,
                "version": node.version,
                "params": node.params,
                "inputs": {role: other.fingerprint for role, other in node.inputs.items()},
                "artifact": f"{node.stage}/{node.name}",
            }
            for node in nodes
        },
        "lineage": {name: model.known() for name, model in variant.lineage.items()},
        "models": {name: node.fingerprint for name, node in variant.models.items()},
        "evaluations": {
            name: {benchmark: node.fingerprint for benchmark, node in found.items()}
            for name, found in variant.evaluations.items()
        },
        "benchmarks": variant.benchmarks,
        "report": variant.report,
    }
    slug = re.sub(r"[^A-Za-z0-9=._,@+-]+", "_", variant.name)
    if len(slug) > _SLUG_LENGTH:
        slug = f"{slug[:80]}-{hashlib.sha256(variant.name.encode()).hexdigest()[:12]}"
    directory = runs / slug
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "graph.json.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.rename(directory / "graph.json")
    return directory / "graph.json"


def load_variant(file: Path) -> Variant:
    """Read a variant that `save_variant` wrote.

    Raises:
        ArtifactError: the file is damaged, or of a version before lineages.
    """
    try:
        record = json.loads(file.read_text())
        nodes: dict[str, Node] = {}
        for fingerprint, entry in record["nodes"].items():  # inputs stand before their users
            inputs = {role: nodes[other] for role, other in entry["inputs"].items()}
            nodes[fingerprint] = Node(entry["stage"], entry["label"], entry["version"], entry["params"], inputs)
        return Variant(
            record["variant"],
            lineage={name: Model(**model) for name, model in record["lineage"].items()},
            models={name: nodes[f] for name, f in record["models"].items()},
            evaluations={
                name: {b: nodes[f] for b, f in found.items()} for name, found in record["evaluations"].items()
            },
            benchmarks=record["benchmarks"],
            overrides=tuple(record["overrides"]),
            report=record.get("report", {}),
            recorded_at=file.stat().st_mtime,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{file} is damaged, or was written by an earlier version ({type(error).__name__}: {error}); delete it and "
            "give the command of that run again: what was built is reused"
        ) from error
