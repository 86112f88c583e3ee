"""Builds nodes: reuses what is committed, launches workers for the rest, one launch after another."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.engine import artifact
from pipeline.engine.errors import Interrupted, StageError
from pipeline.engine.graph import Node
from pipeline.engine.locks import building
from pipeline.engine.process import launch, needs, slurm, worker
from pipeline.engine.process.signals import Stop, grace_s, restore_signals, termination_as_interrupt
from pipeline.engine.process.supervise import Outcome, explain, supervise_stage
from pipeline.engine.run import output_dir, planning
from pipeline.engine.run.display import Display, Tracker, open_display
from pipeline.engine.run.forecast import Forecast, forecasts, naming
from pipeline.engine.sources import package
from pipeline.engine.sources.hashes import HashCache
from pipeline.engine.stage import STAGES, Stage, find_stage


def run(
    targets: Iterable[Node], outputs: Path, cache: Path, *, display: Display | None = None, stages: str = STAGES
) -> dict[str, Path]:
    """Have the artifact of every target, building what is not committed and what that needs.

    Before anything is launched: the stages of all nodes that will be built check the request, reused artifacts are
    looked at, the outputs folder is tried, stages check that their downloads are available, packages are
    fetched, and artifacts that will be read are verified by their hashes.

    Args:
        targets: nodes whose artifacts are wanted; give all nodes of a graph to have all of them.
        outputs: artifacts go below `<outputs>/artifacts/`.
        cache: fetched packages and remembered hashes.
        display: not given: bars or lines on stderr.
        stages: the package that holds the stage modules.

    Returns:
        fingerprint -> committed directory of every node that was reused or built. Inputs that nothing needed,
        because what reads them is committed, are left out if they are not there.

    Raises:
        ConfigError: the request is wrong, or the outputs folder cannot be used. Nothing was launched.
        ArtifactError: something reused is damaged, or a package could not be downloaded. Nothing was launched.
        StageError: a worker failed; what was built before it stays.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the workers are gone, or because a worker stopped by itself
            before its time limit; `EXIT_INTERRUPTED` is the exit status.
    """
    own = contextlib.closing(open_display()) if display is None else contextlib.nullcontext(display)
    restore_signals()
    with termination_as_interrupt(), own as shown:
        try:
            return _Run(outputs.absolute(), cache.absolute(), stages, shown).build(list(targets))
        except KeyboardInterrupt as interrupt:
            why = f"{interrupt}; " if str(interrupt) else ""
            raise Interrupted(
                f"{why}no worker is left; what was built stays, and the same command resumes"
            ) from interrupt


def plan(targets: Iterable[Node], outputs: Path, cache: Path, *, stages: str = STAGES) -> str:
    """The table of what `run` would do, and why, and what it will cost as far as stages can tell.

    Makes the checks of the request and whether `outputs` can be written, but fetches and builds nothing.

    Raises:
        ConfigError, ArtifactError: as `run` does for a wrong request and for damaged artifacts.
    """
    planned = _Run(outputs.absolute(), cache.absolute(), stages, Display(sys.stderr))
    steps = planned.plan(list(targets), explained=True)
    told = planned.forecasts(steps)
    if any(step.state == "miss" for step in steps):
        output_dir.check_writable(outputs)
    return planning.render(steps, {node: forecast.lines for node, forecast in told.items()})


def peak_bytes(targets: Iterable[Node], outputs: Path, cache: Path, *, stages: str = STAGES) -> int | None:
    """Memory that one process of what `run` would build takes at most, without libraries; None where it cannot be told.

    Raises:
        ConfigError, ArtifactError: as `plan` does.
    """
    planned = _Run(outputs.absolute(), cache.absolute(), stages, Display(sys.stderr))
    # What earlier runs measured tells of time alone.
    told = planned.forecasts(planned.plan(list(targets)), earlier=list)
    found = [one.memory_bytes for one in told.values()]
    known = [one for one in found if one is not None]
    return max(known, default=0) if len(known) == len(found) else None


@dataclass
class _Run:
    outputs: Path
    cache: Path
    stages: str
    display: Display

    def plan(self, targets: Sequence[Node], explained: bool = False) -> list[planning.Step]:
        steps = planning.plan(targets, self.outputs, explained)
        for step in steps:
            with naming(step.node):
                launch.check(step.node.launch)
                if step.node.launch.get("slurm"):
                    slurm.check(step.node.launch)
                if step.state == "miss":
                    package.wanted([step.node.params])
        return steps

    def forecasts(
        self, steps: Sequence[planning.Step], earlier: Callable[[], Sequence[Mapping[str, Any]]] | None = None
    ) -> dict[Node, Forecast]:
        """Of the nodes that will be built. Raises ConfigError for what a stage refuses.

        Args:
            earlier: see `Request`; None: the manifests of what is committed.
        """
        known = [step for step in steps if step.state != "unneeded"]
        nodes = [(step.node, step.directory if step.state == "hit" else None) for step in known]
        measured = {step.node.stage: None for step in steps if hasattr(self._module(step.node.stage), "forecast")}
        return forecasts(nodes, self._module, earlier or (lambda: planning.manifests(self.outputs, measured)))

    def build(self, targets: Sequence[Node]) -> dict[str, Path]:
        steps = self.plan(targets)
        told = self.forecasts(steps)
        done = {step.node.fingerprint: step.directory for step in steps if step.state == "hit"}
        missed = [step.node for step in steps if step.state == "miss"]
        self.display.reused(len(done))
        if missed:
            for note in filter(None, (planning.note(node.label, told[node].lines) for node in missed)):
                self.display.message(note)
            output_dir.probe(self.outputs)
            for node in missed:
                needs.check_meeting(self._settings(node))
            self._check_network(missed)
            packages = package.fetch_all([node.params for node in missed], self.cache, self.display.message)
            self._verify_inputs(missed, done)
            self._build_all(missed, done, packages)
        return done

    def _module(self, name: str) -> ModuleType:
        return find_stage(name, self.stages)

    def _stage(self, node: Node) -> Stage:
        return self._module(node.stage).STAGE

    def _check_network(self, missed: Sequence[Node]) -> None:
        for node in missed:
            if check := getattr(self._module(node.stage), "check_network", None):
                with naming(node):
                    check(node.params)

    def _verify_inputs(self, missed: Sequence[Node], done: Mapping[str, Path]) -> None:
        hashes = HashCache(self.cache)
        read = {done.get(source.fingerprint): None for node in missed for source in node.inputs.values()}
        try:
            for directory in filter(None, read):
                artifact.verify(directory, hashes, self.display.message)
                hashes.save()
        finally:
            hashes.save()

    def _build_all(self, missed: Sequence[Node], done: dict[str, Path], packages: Mapping[str, str]) -> None:
        waiting = list(missed)
        while waiting:
            self._build_group(self._group(waiting, done), done, packages)
            waiting = [node for node in waiting if node.fingerprint not in done]

    def _group(self, waiting: Sequence[Node], done: Mapping[str, Path]) -> list[Node]:
        """The next node and those ready to share its worker: same stage, same launch, same input in SHARED_ROLE."""
        first = waiting[0]
        role = self._stage(first).shared_role
        if role not in first.inputs or first.launch.get("inprocess"):
            return [first]
        return [
            node
            for node in waiting
            if (node.stage, node.launch) == (first.stage, first.launch)
            and node.inputs.get(role) == first.inputs[role]
            and all(source.fingerprint in done for source in node.inputs.values())
        ]

    def _build_group(self, group: Sequence[Node], done: dict[str, Path], packages: Mapping[str, str]) -> None:
        with contextlib.ExitStack() as locks:
            for node in sorted(group, key=lambda one: one.fingerprint):  # one order, so no two drivers deadlock
                locks.enter_context(building(artifact.directory_of(node, self.outputs), self.display.message))
            for node in group:
                if directory := artifact.find(node, self.outputs):
                    artifact.check(directory)
                    done[node.fingerprint] = directory
                    self.display.message(f"reused {node.stage}/{directory.name}, built meanwhile")
            left = [node for node in group if node.fingerprint not in done]
            if left:
                self._launch(left, done, packages)

    def _launch(self, nodes: Sequence[Node], done: dict[str, Path], packages: Mapping[str, str]) -> None:
        stage, settings = self._module(nodes[0].stage), self._settings(nodes[0])
        final = [artifact.directory_of(node, self.outputs) for node in nodes]
        partial = [artifact.partial(directory) for directory in final]
        patience_s = max(output_dir.ORPHAN_S, grace_s(settings) + output_dir.MARGIN_S)
        for node, directory in zip(nodes, partial, strict=True):
            config = _config(node, settings, done, packages)
            output_dir.lay_out(directory, config, self._stage(node).resumable, patience_s)
        names = {n.fingerprint: (n.label, f"{n.stage}/{one.name}") for n, one in zip(nodes, final, strict=True)}
        start = self._inprocess if settings.get("inprocess") else self._accelerated
        with contextlib.closing(Tracker(names, self.display)) as tracker:
            start(stage, settings, [directory for directory in partial if directory.exists()], tracker)
        for node, directory in zip(nodes, final, strict=True):
            artifact.check(directory)
            done[node.fingerprint] = directory

    def _settings(self, node: Node) -> dict[str, Any]:
        return launch.single(node.launch) if self._stage(node).single_process else dict(node.launch)

    def _accelerated(
        self, stage: ModuleType, settings: Mapping[str, Any], directories: Sequence[Path], tracker: Tracker
    ) -> None:
        if not directories:
            return
        if settings.get("slurm"):
            outcome = slurm.run(stage.__name__, directories, settings, tracker, self.display.message)
        else:
            elsewhere = launch.elsewhere(stage.__name__, directories, settings)
            for command in elsewhere:
                self.display.message(f"to be started on another machine: {command}")
            if elsewhere:
                self.display.message(f"waiting for {len(elsewhere)} other machines at {settings['main_address']}")
            outcome = supervise_stage(stage.__name__, directories, settings, tracker, self.display.message)
        if left := [one for one in directories if not artifact.is_committed(artifact.final(one))]:
            if outcome.stopped and not outcome.failure:
                raise Interrupted(outcome.stopped)
            raise _failure(stage, settings, left, outcome)

    def _inprocess(
        self, stage: ModuleType, settings: Mapping[str, Any], directories: Sequence[Path], tracker: Tracker
    ) -> None:
        try:
            with Stop().handling() as stop:
                worker.execute(stage.run, directories, tracker, stop, is_main=True, driven=False)
        except Exception as error:
            raise _failure(stage, settings, directories, Outcome(1, set(), worker.failure(error))) from error


def _failure(stage: ModuleType, settings: Mapping[str, Any], left: Sequence[Path], outcome: Outcome) -> StageError:
    reason, log = explain(outcome, left[0])
    command = launch.rerun(stage.__name__, left, settings)
    return StageError(stage.__name__.rpartition(".")[2], left[0], reason, log, command)


def _config(
    node: Node, settings: Mapping[str, Any], done: Mapping[str, Path], packages: Mapping[str, str]
) -> dict[str, Any]:
    """What the worker reads: the node, how it is launched, and where its inputs and sources lie."""
    inputs = {
        role: {"fingerprint": source.fingerprint, "directory": str(done[source.fingerprint])}
        for role, source in node.inputs.items()
    }
    return {
        **{key: getattr(node, key) for key in artifact.OF_NODE},
        "inputs": inputs,
        **node.settings,
        "launch": dict(settings),
        "packages": {source["sha256"]: packages[source["sha256"]] for source in package.wanted([node.params])},
        "argv": sys.argv,
    }
