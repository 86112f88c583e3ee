"""From a resolved config to a graph: the models of its lineage, each evaluated, and what judges and compares them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engine.errors import ConfigError
from pipeline.engine.graph import Node, topological
from pipeline.engine.run.forecast import forecasts
from pipeline.engine.sources.locations import localize
from pipeline.engine.stage import ROOT, find_stage
from pipeline.lineage import gate
from pipeline.lineage.benchmarks import Domains, Evaluations
from pipeline.lineage.entries import MODEL, Entry, read_lineage, section_of
from pipeline.lineage.template_files import template_files_as_sources
from pipeline.lineage.variant import Model, Variant

DATA = "data"
"""The kind of artifact, the role and the key of a section by which a model's stage asks for prepared data."""
NOT_OF_DATA = ("domains", "task")
"""Keys of a data section for the groups of benchmarks, and for other keys to refer to."""
SAMPLES = "samples"
"""The kind of artifact and the stage that makes it: what a model wrote."""


def build(config: Mapping[str, Any], name: str, cache: Path) -> Variant:
    """Turn a resolved config into nodes.

    Args:
        name: of the variant: its overrides.
        cache: remembers the hashes of local files.

    Raises:
        ConfigError: the request is wrong in a way that no single stage could see, or a path does not exist.
    """
    return _Builder(config, Variant(name), cache).build()


def known_fact(node: Node | None, key: str) -> Any:
    """What can be told of a node's result before it is built; None where it cannot."""
    if node is None:
        return None
    with warnings.catch_warnings():  # what is to be told is told when the run is planned
        warnings.simplefilter("ignore")
        return forecasts([(one, None) for one in topological([node])], find_stage, list)[node].facts.get(key)


class _Builder:
    def __init__(self, config: Mapping[str, Any], variant: Variant, cache: Path) -> None:
        self.config, self.variant, self.cache, self.domains = config, variant, cache, Domains()

    def build(self) -> Variant:
        self._check_report()
        entries = read_lineage(self.config)
        self._check_names(entries)
        self.alone = {stage for stage in (e.stage for e in entries) if sum(e.stage == stage for e in entries) == 1}
        stands_for: dict[str, str] = {}  # a skipped entry -> the model that it passes through
        for entry in entries:
            if entry.is_skipped:
                stands_for[entry.name] = stands_for[next(iter(entry.parents.values()))]
            else:
                stands_for[entry.name] = entry.name
                self._add(entry, {role: stands_for[name] for role, name in entry.parents.items()})
        for name, model in self.variant.lineage.items():
            if model.reference is not None:
                self.variant.lineage[name] = model._replace(reference=stands_for[model.reference])
        Evaluations(self.config, self.variant, self._node, self._data, self.domains).add_all()
        self._check_tasks()
        if asked := gate.request(self.config["evaluate"]["gate"], self.variant):
            self.variant.gate = self._node("gate", "gate", *asked)
        self.variant.report = dict(self.config["report"])
        return self.variant

    def _add(self, entry: Entry, parents: Mapping[str, str]) -> None:
        """The node of a model, and of the data that it is made with."""
        section = {key: value for key, value in entry.settings.items() if key != "skip"}
        inputs = {role: self.variant.models[name] for role, name in parents.items()}
        label = entry.stage if entry.stage in self.alone else f"{entry.stage}/{entry.name}"
        first = next(iter(parents.values()), None)
        root = None if first is None else self.variant.root(first)
        short = entry.section if entry.stage in self.alone else entry.name
        asked = self._checked(entry, getattr(find_stage(entry.stage), "also_reads", _nothing), section)
        if entry.declared.inputs.get(DATA) == DATA:
            if not (data := section.pop(DATA, None)):
                raise ConfigError(f"{entry.section} needs data; {entry.section}=none leaves the stage out")
            self.domains.add(data.get("domains"), f"{entry.section}.data.domains")
            inputs[DATA] = self._data(short, data, root, entry.section)
        inputs |= {role: self._asked(entry, role, settings, root, short) for role, settings in asked.items()}
        params, hints = self._params(entry, section, next(iter(inputs.values()), None))
        node = self._node(entry.stage, label, params, inputs, hints, method=entry.section)
        if len(parents) > 1:
            node.settings["derived"] = {role: self.variant.came_from(name, first) for role, name in parents.items()}
        reference = entry.reference if entry.reference is not None else root
        self.variant.models[entry.name] = node
        self.variant.lineage[entry.name] = Model(entry.stage, dict(parents), reference, entry.task)

    def _params(
        self, entry: Entry, section: dict[str, Any], parent: Node | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Params and hints out of a section."""
        hints = {key: section.pop(key) for key in entry.declared.hints if key in section}
        stage = find_stage(entry.stage)
        if settle := getattr(stage, "settle", None):
            section = self._checked(entry, lambda own: settle(own, lambda key: known_fact(parent, key)), section)
        return self._checked(entry, getattr(stage, "params_of", dict), section), hints

    def _checked(self, entry: Entry, function: Callable[[Any], dict[str, Any]], section: Any) -> dict[str, Any]:
        """What a stage's function says of a section; what it refuses is named by the section's key."""
        try:
            return function(section)
        except ValueError as error:
            raise ConfigError(f"{entry.section}.{error}") from error

    def _asked(self, entry: Entry, role: str, settings: dict[str, Any], root: str | None, short: str) -> Node:
        """What a section asks for beside what every run of its stage reads."""
        kind = entry.declared.kind_of(role)
        if kind == DATA:
            return self._data(f"{short}-{role}", settings, root, f"{entry.section}.{role}")
        assert root is not None
        if kind == SAMPLES:
            params, inputs = {SAMPLES: settings}, {MODEL: self.variant.models[root]}
            return self._node(SAMPLES, f"{SAMPLES}/{short}", params, inputs, samples=f"{entry.section}.{role}")
        assert kind == ROOT, f"stage {entry.stage} asks for {role!r}, of kind {kind}"
        return self.variant.models[root]

    def _node(
        self,
        stage: str,
        label: str,
        params: dict[str, Any],
        inputs: dict[str, Node],
        hints: Mapping[str, Any] | None = None,
        **keys: str,
    ) -> Node:
        """A node of these params; `keys` are what their names are in the config, where these differ."""
        declared = find_stage(stage).STAGE
        section = section_of(stage, declared)
        names = {key: f"{section}.{key}" for key in params} | keys
        params, locations = localize(template_files_as_sources(params), self.cache, names)
        settings: dict[str, Any] = {"launch": dict(self.config["launch"]), "locations": locations}
        settings |= {"hints": dict(hints)} if hints else {}
        settings |= {"early": True} if declared.reads_sources else {}
        return Node(stage, label, declared.version, params, inputs, settings)

    def _data(self, name: str, data: dict[str, Any], root: str | None, key: str) -> Node:
        """One node for the same data under whatever name it is used; `root`: the model whose tokenizer it takes."""
        assert root is not None
        data = {one: value for one, value in data.items() if one not in NOT_OF_DATA}
        inputs = {"base": self.variant.models[root]}
        node = self._node("data", f"data/{name}", {"data": data}, inputs, data=f"{key}.data")
        node.settings["key"] = f"{key}.data"
        for known in self.variant.data.values():
            if known == node:
                return known
        self.variant.data[node.label] = node
        return node

    def _check_tasks(self) -> None:
        """A task's scores are those of a benchmark; without them nothing could be told of a chain."""
        for name, model in self.variant.lineage.items():
            if model.task is not None and model.task not in self.variant.evaluations[name]:
                raise ConfigError(
                    f"lineage.{name} learns the task {model.task!r}, and no benchmark of that name is evaluated on it; "
                    f"there are {', '.join(self.variant.evaluations[name]) or 'none'}"
                )

    def _check_report(self) -> None:
        """What would be wrong with the report is said before the days of work that it is about."""
        try:
            find_stage("report").check_settings(self.config["report"])
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_names(self, entries: Sequence[Entry]) -> None:
        """What the report says of models must be of some that the lineage has, or leaves out."""
        swept = {
            name: next(iter(one["each"])) if isinstance(one, Mapping) and one.get("each") else ""
            for name, one in self.config["lineage"].items()
        }
        try:
            find_stage("report").check_models(self.config["report"], swept | {entry.name: "" for entry in entries})
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _nothing(section: Mapping[str, Any]) -> dict[str, Any]:
    return {}
