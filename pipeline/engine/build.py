"""From a resolved config to a graph: base -> expand -> pretrain -> sft, each model evaluated, all compared."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.engine import gate
from pipeline.engine.errors import ArtifactError, ConfigError
from pipeline.engine.graph import SHORT, Node, topological
from pipeline.engine.locations import localize
from pipeline.engine.model_facts import SHAPE, known_facts

STAGES = ("base", "data", "expand", "pretrain", "sft", "evaluate", "report")
ROWS = {"base": "base", "expand": "expanded", "pretrain": "post-pretrained", "sft": "tuned"}
TRAINING = ("pretrain", "sft")
DESCRIPTION = ("title", "group", "note")  # of a benchmark: for the report, not for the evaluation


@dataclass
class Cell:
    """One configuration: its models in the order in which they come to be, and the evaluations of each.

    Attributes:
        name: what tells this cell from others of its run: its overrides.
        models: row -> node that makes the model.
        evaluations: row -> benchmark -> node.
        data: label -> node of prepared data.
        benchmarks: benchmark -> title, group and note.
        gate: node that judges the last model against the base, if one is asked for.
    """

    name: str
    models: dict[str, Node] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Node]] = field(default_factory=dict)
    data: dict[str, Node] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    gate: Node | None = None

    def targets(self, stage: str) -> list[Node]:
        """The nodes that `stage=<stage>` asks for; the report is built apart, over all cells of a run.

        Raises:
            ConfigError: this configuration skips that stage.
        """
        if stage in ("evaluate", "report"):
            evaluations = [node for row in self.evaluations.values() for node in row.values()]
            return [*self.models.values(), *evaluations, *([self.gate] if self.gate else [])]
        if stage == "data":
            return list(self.data.values())
        if stage not in STAGES:
            raise ConfigError(f"stage={stage!r} is not known; use one of {', '.join(STAGES)}")
        if ROWS[stage] not in self.models:
            raise ConfigError(f"stage={stage} is asked for, but the config skips it ({stage}=none)")
        return [self.models[ROWS[stage]]]


def build(config: Mapping[str, Any], cell: str, cache: Path) -> tuple[Cell, dict[str, Any]]:
    """Turn a resolved config into nodes.

    Returns:
        The cell, and the facts of its base model that requests are checked against.

    Raises:
        ConfigError: the request is wrong in a way that no single stage could see, or a path does not exist.
    """
    return _Builder(config, cell, cache).build()


class _Builder:
    def __init__(self, config: Mapping[str, Any], cell: str, cache: Path) -> None:
        self.config, self.cache, self.cell = config, cache, Cell(cell)
        self.here: dict[str, str] = {}  # benchmark that only runs in this process -> the backend it was asked for

    def build(self) -> tuple[Cell, dict[str, Any]]:
        config, cell = self.config, self.cell
        self._check_report()
        facts = known_facts(config["model"])
        if not config["sft"].get("skip"):
            facts["chat_template"] = None  # instruction tuning may bring one
        params = {key: value for key, value in config["model"].items() if key != SHAPE}
        base = model = self._node("base", "base", params, {}, source="model.source")
        cell.models[ROWS["base"]] = base
        if not config["expand"].get("skip"):
            method = {k: v for k, v in config["expand"].items() if k not in ("skip", "save")}
            params = {"method": method, "save": config["expand"]["save"]}
            model = self._node("expand", "expand", params, {"model": base}, method="expand")
            cell.models[ROWS["expand"]] = model
        for stage in TRAINING:
            section = dict(config[stage])
            if section.pop("skip", False):
                continue
            sources = section.pop("data", None)
            if not sources or "strategy" not in section:
                raise ConfigError(f"{stage} needs a data and a strategy; {stage}=none leaves the stage out")
            for key in ("num_tokens", "num_steps"):
                if isinstance(length := section.get(key), float) and length.is_integer():
                    section[key] = int(length)  # 1e9 is how people write it; the same run as 1000000000
            _check_shares(stage, section.get("shares"), sources.get("sources") or {})
            data = self._data(stage, sources, base, stage)
            self._check_strategy(stage, section["strategy"], facts)
            model = self._node(stage, stage, section, {"model": model, "data": data})
            cell.models[ROWS[stage]] = model
        for row, node in cell.models.items():
            cell.evaluations[row] = {}
            for name, benchmark in (config.get("benchmark") or {}).items():
                self._evaluation(row, node, name, dict(benchmark))
        self._tell_local()
        if asked := gate.request(config["evaluate"]["gate"], cell):
            cell.gate = self._node("gate", "gate", *asked)
        return cell, facts

    def _node(self, stage: str, label: str, params: dict[str, Any], inputs: dict[str, Node], **keys: str) -> Node:
        """A node of these params; `keys` are what their names are in the config, where these differ."""
        params, locations = localize(params, self.cache, keys)
        settings = {"launch": dict(self.config["launch"]), "locations": locations}
        return Node(stage, label, _version(stage), params, inputs, settings)

    def _data(self, name: str, data: dict[str, Any], base: Node, key: str) -> Node:
        """One node for the same data under whatever name it is used."""
        node = self._node("data", f"data/{name}", {"data": data}, {"base": base}, data=f"{key}.data")
        for known in self.cell.data.values():
            if known == node:
                return known
        self.cell.data[node.label] = node
        return node

    def _evaluation(self, row: str, model: Node, name: str, benchmark: dict[str, Any]) -> None:
        description = {key: benchmark.pop(key) for key in DESCRIPTION if key in benchmark}
        benchmark.pop("folder", None)  # only a place for other keys to refer to
        if not _is_wanted(row, name, benchmark.pop("models", None)):
            return
        inputs = {"model": model}
        if reference := benchmark.pop("reference", None):
            if row == reference:  # set against itself a model shows nothing
                return
            inputs["reference"] = self._reference(name, reference)
        if "data" in benchmark:
            data = benchmark.pop("data")
            if not data:
                if row == ROWS["base"]:
                    warnings.warn(
                        f"benchmark {name} is left out: it evaluates on the held-out part of data that this config "
                        f"skips; name the data with data@benchmark.{name}.data=...",
                        stacklevel=2,
                    )
                return
            inputs["data"] = self._data(name, data, self.cell.models[ROWS["base"]], f"benchmark.{name}")
        self.cell.benchmarks[name] = description
        backend, server = self._backend(name, benchmark), {}
        endpoint = benchmark.pop("endpoint", None)
        params: dict[str, Any] = {"benchmark": benchmark}
        if backend != "local":  # another precision or another program gives other numbers
            server = dict(self.config["evaluate"]["server"])
            served = (server.pop("models") or {}).get(row)
            params |= {"backend": backend, **({"served_model": served} if backend == "endpoint" else {})}
        try:
            node = self._node("evaluate", f"evaluate/{row}/{name}", params, inputs, benchmark=f"benchmark.{name}")
        except ConfigError as error:
            advice = importlib.import_module("stages.evaluate").mirror_advice(benchmark)
            raise ConfigError(f"{error}{advice}") from error
        # How a server or a judge is reached is no part of what it says.
        reached = {"server": server or None, "endpoint": endpoint}
        node.settings["launch"] |= {key: value for key, value in reached.items() if value is not None}
        self.cell.evaluations[row][name] = node

    def _backend(self, name: str, benchmark: dict[str, Any]) -> str:
        """Where a benchmark's model runs; those that only run in this process are noted, to be told together."""
        asked = benchmark.pop("backend", self.config["evaluate"]["backend"])
        found = str(importlib.import_module("stages.evaluate").backend_for(benchmark, asked))
        if found != asked:
            self.here[name] = asked
        return found

    def _tell_local(self) -> None:
        if self.here:
            asked = " and ".join(dict.fromkeys(self.here.values()))
            warnings.warn(
                f"evaluate.backend={asked} cannot run {', '.join(self.here)}: evaluated with the model in this "
                "project's own process, as with evaluate.backend=local",
                stacklevel=2,
            )

    def _check_report(self) -> None:
        """What would be wrong with the report is said before the days of work that it is about."""
        try:
            importlib.import_module("stages.report").check_settings(self.config["report"])
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _reference(self, name: str, row: str) -> Node:
        if row not in self.cell.models:
            known = ", ".join(self.cell.models)
            raise ConfigError(f"benchmark.{name}.reference={row!r} is no model of this run so far; there is {known}")
        return self.cell.models[row]

    def _check_strategy(self, stage: str, strategy: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        wants_new = str(strategy.get("_target_", "")).endswith(".NewBlocks")
        if wants_new and ROWS["expand"] not in self.cell.models and not facts["expanded"]:
            raise ConfigError(
                f"{stage}.strategy=new_blocks trains what the expansion added, but expand=none adds nothing; "
                f"use expand=block, or strategy@{stage}.strategy=full (or lora)"
            )


def _is_wanted(row: str, name: str, rows: Any) -> bool:
    """Whether a benchmark that may be meant for some models only is meant for this one."""
    known = ROWS.values()
    if rows is not None and not (isinstance(rows, list) and set(rows) <= set(known)):
        raise ConfigError(
            f"benchmark.{name}.models={rows!r}: give a list of {', '.join(known)}, or null for every model"
        )
    return rows is None or row in rows


def _version(stage: str) -> int:
    return int(importlib.import_module(f"stages.{stage}").VERSION)


def _check_shares(stage: str, shares: Any, sources: Mapping[str, Any]) -> None:
    """Refuse shares of other sources than the data has; the stage itself would notice only when the data is built."""
    for point in shares if isinstance(shares, list) else [[0, shares]]:
        found = point[-1] if isinstance(point, list) and point else None
        if isinstance(found, Mapping) and set(found) != set(sources):
            raise ConfigError(
                f"{stage}.shares name {sorted(found)}; they must name every source of {stage}.data.sources once: "
                f"{sorted(sources)}"
            )


def report_node(settings: Mapping[str, Any], name: str, cells: list[Cell], launch: Mapping[str, Any]) -> Node:
    """The report over all evaluations of these cells, and the curves of their training."""
    inputs: dict[str, Node] = {}

    def role(node: Node) -> str:
        key = f"{node.stage}-{node.fingerprint[:SHORT]}"
        inputs[key] = node
        return key

    described = []
    for cell in cells:
        rows = []
        for row, model in cell.models.items():
            training = role(model) if model.stage in TRAINING else None
            evaluations = {benchmark: role(node) for benchmark, node in cell.evaluations[row].items()}
            rows.append({"row": row, "model": role(model), "training": training, "evaluations": evaluations})
        described.append({"cell": cell.name, "rows": rows})
    benchmarks = {name: text for cell in cells for name, text in cell.benchmarks.items()}
    params = {**settings, "name": name, "cells": described, "benchmarks": benchmarks}
    return Node("report", f"report/{name}", _version("report"), params, inputs, {"launch": dict(launch)})


def save_cell(cell: Cell, runs: Path, overrides: list[str]) -> Path:
    """Record a finished cell under `runs`, so that later reports of the same run find it: pointers only."""
    import hashlib
    import re

    nodes = topological(cell.targets("report"))
    record = {
        "cell": cell.name,
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
        "models": {row: node.fingerprint for row, node in cell.models.items()},
        "evaluations": {row: {b: n.fingerprint for b, n in e.items()} for row, e in cell.evaluations.items()},
        "benchmarks": cell.benchmarks,
    }
    slug = re.sub(r"[^A-Za-z0-9=._,@+-]+", "_", cell.name)
    if len(slug) > 100:
        slug = f"{slug[:80]}-{hashlib.sha256(cell.name.encode()).hexdigest()[:12]}"
    directory = runs / slug
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "graph.json.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.rename(directory / "graph.json")
    return directory / "graph.json"


def load_cell(file: Path) -> Cell:
    """Read a cell that `save_cell` wrote.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        record = json.loads(file.read_text())
        nodes: dict[str, Node] = {}
        for fingerprint, entry in record["nodes"].items():  # inputs stand before their users
            inputs = {role: nodes[other] for role, other in entry["inputs"].items()}
            nodes[fingerprint] = Node(entry["stage"], entry["label"], entry["version"], entry["params"], inputs)
        return Cell(
            record["cell"],
            {row: nodes[f] for row, f in record["models"].items()},
            {row: {b: nodes[f] for b, f in e.items()} for row, e in record["evaluations"].items()},
            {},
            record["benchmarks"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file} is damaged ({type(error).__name__}: {error}); delete it") from error
