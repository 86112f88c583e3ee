"""Which benchmark runs on which model of a lineage, on what data, against what, and where."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.engine.errors import ConfigError
from pipeline.engine.graph import Node
from pipeline.engine.stage import find_stage
from pipeline.lineage.entries import models_of
from pipeline.lineage.variant import Variant

DESCRIPTION = ("title", "group", "note", "domain")
"""Keys of a benchmark that are for the report and not for the evaluation."""


class Domains:
    """What the data that a run trains on teach, as they declare it by `domains`; null: not known."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.all_known = True

    def add(self, declared: Any, where: str) -> None:
        """The `domains` of one more data section. Raises ConfigError for what is neither null nor a list of names."""
        if declared is None:
            self.all_known = False
        elif isinstance(declared, list) and all(isinstance(one, str) for one in declared):
            self.known |= set(declared)
        else:
            raise ConfigError(f"{where}={declared!r} must be a list of names, such as [code, math], or null")

    def group_of(self, description: Mapping[str, Any], where: str) -> Any:
        """Of a benchmark: one about a domain is a measure of the domain in a run that trains it, and of retention in a
        run that does not; where neither is known, what its `group` says."""
        group, about = description.get("group"), description.get("domain")
        if about is None:
            return group
        if not isinstance(about, str):
            raise ConfigError(f"{where}={about!r} must be a name, such as math, or null")
        if about in self.known:
            return "domain"
        return "retention" if group == "domain" and self.known and self.all_known else group


class Evaluations:
    """Adds the evaluations of every model to a variant.

    Args:
        node, data: make a node, and one of prepared data, as `build` does.
        domains: of the data that the run trains on.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        variant: Variant,
        node: Callable[..., Node],
        data: Callable[..., Node],
        domains: Domains,
    ) -> None:
        self.config, self.variant, self.node, self.data, self.domains = config, variant, node, data, domains
        self.stage = find_stage("evaluate")
        self.here: dict[str, str] = {}  # benchmark that only runs in this process -> the backend it was asked for

    def add_all(self) -> None:
        """Add them but for those that are null, and say what does not run where it was asked to."""
        for name in self.variant.models:
            self.variant.evaluations[name] = {}
            for benchmark, settings in (self.config.get("benchmark") or {}).items():
                if settings is not None:
                    self._add(name, benchmark, dict(settings))
        if self.here:
            asked = " and ".join(dict.fromkeys(self.here.values()))
            warnings.warn(
                f"evaluate.backend={asked} cannot run {', '.join(self.here)}: evaluated with the model in this "
                "project's own process, as with evaluate.backend=local",
                stacklevel=2,
            )

    def _add(self, model: str, name: str, benchmark: dict[str, Any]) -> None:
        if "_target_" not in benchmark:
            raise ConfigError(
                f"benchmark.{name} has keys but no _target_: {name} is not among the chosen benchmarks; add it: "
                f"+benchmark={name} (or leave its keys out)"
            )
        description = {key: benchmark.pop(key) for key in DESCRIPTION if key in benchmark}
        description["group"] = self.domains.group_of(description, f"benchmark.{name}.domain")
        for place in ("folder", "path"):  # only for other keys to refer to
            benchmark.pop(place, None)
        if not self._runs_on(model, name, benchmark.pop("models", None)):
            return
        inputs = {"model": self.variant.models[model]}
        if reference := benchmark.pop("reference", None):
            if model == reference:  # set against itself a model shows nothing
                return
            inputs["reference"] = self._reference(name, reference)
        if samples := benchmark.pop("samples", None):
            inputs["samples"] = self._samples(name, samples, inputs.get("reference"))
        if "data" in benchmark:
            if data := benchmark.pop("data"):
                inputs["data"] = self.data(name, data, self.variant.root(model), f"benchmark.{name}")
            elif not samples:
                self._tell_without_data(model, name)
                return
        if same := self._scores_of_parent(model, name, benchmark):
            inputs["parent_scores"] = same
        self.variant.benchmarks[name] = description
        if self.stage.scores_gold(benchmark):
            self.variant.with_gold.add(name)
        self.variant.evaluations[model][name] = self._node_of(model, name, benchmark, inputs)

    def _node_of(self, model: str, name: str, benchmark: dict[str, Any], inputs: dict[str, Node]) -> Node:
        backend = self._backend(name, benchmark)
        # How a server or a judge is reached is no part of what it says.
        access = {"endpoint": benchmark.pop("endpoint", None)}
        params: dict[str, Any] = {"benchmark": benchmark}
        if backend != "local":  # another precision or another program gives other numbers
            access["server"] = dict(self.config["evaluate"]["server"])
            served = (access["server"].pop("models") or {}).get(model)
            params |= {"backend": backend, **({"served_model": served} if backend == "endpoint" else {})}
        try:
            node = self.node("evaluate", f"evaluate/{model}/{name}", params, inputs, benchmark=f"benchmark.{name}")
        except ConfigError as error:
            raise ConfigError(f"{error}{self.stage.mirror_advice(benchmark)}") from error
        node.settings["key"] = f"benchmark.{name}"
        if reached := {key: value for key, value in access.items() if value is not None}:
            node.settings["access"] = reached
        return node

    def _backend(self, name: str, benchmark: dict[str, Any]) -> str:
        """Where a benchmark's model runs; those that only run in this process are noted, to be told together."""
        asked = benchmark.pop("backend", self.config["evaluate"]["backend"])
        found = str(self.stage.backend_for(benchmark, asked))
        if found != asked:
            self.here[name] = asked
        return found

    def _scores_of_parent(self, model: str, name: str, benchmark: Mapping[str, Any]) -> Node | None:
        """The evaluation that this one repeats, should the model compute exactly what its parent does."""
        place = self.variant.lineage[model]
        evaluate = self.config["evaluate"]
        backend = self.stage.backend_for(benchmark, benchmark.get("backend", evaluate["backend"]))
        repeats = find_stage(place.stage).STAGE.proves_identity and self.stage.reads_outputs_alone(benchmark)
        if not (evaluate["reuse_exact"] and repeats and backend == "local"):
            return None
        return self.variant.evaluations[next(iter(place.parents.values()))].get(name)

    def _reference(self, name: str, model: str) -> Node:
        if model not in self.variant.models:
            known = ", ".join(self.variant.models)
            raise ConfigError(f"benchmark.{name}.reference={model!r}: this run has no such model; it has {known}")
        return self.variant.models[model]

    def _samples(self, name: str, settings: dict[str, Any], reference: Node | None) -> Node:
        """One node of what the reference wrote, for all models that are set against it."""
        if reference is None:
            raise ConfigError(
                f"benchmark.{name} has samples but no reference, the model that writes them; set "
                f"benchmark.{name}.reference=base"
            )
        params, inputs = {"samples": settings}, {"model": reference}
        return self.node("samples", f"samples/{name}", params, inputs, samples=f"benchmark.{name}.samples")

    def _runs_on(self, model: str, name: str, models: Any) -> bool:
        known = list(models_of(self.config))
        if models is not None and not (isinstance(models, list) and set(models) <= set(known)):
            raise ConfigError(
                f"benchmark.{name}.models={models!r}: give a list of {', '.join(known)}, or null for every model"
            )
        return models is None or model in models

    def _tell_without_data(self, model: str, name: str) -> None:
        if model == next(iter(self.variant.models)):
            warnings.warn(
                f"benchmark {name} is left out: it evaluates on the held-out part of data that this config "
                f"leaves out; name the data: +data@benchmark.{name}.data=OPTION, with an option of conf/data",
                stacklevel=2,
            )
