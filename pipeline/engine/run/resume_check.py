"""Proof on this machine that a training stage resumes exactly: a short run, killed at random moments, against one that
was not.

Nothing of the library is known here: two artifacts are the same if their files have the same hashes, and the records of
their steps the same lines but for what a clock decides.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.engine import artifact
from pipeline.engine.errors import StageError
from pipeline.engine.graph import Node
from pipeline.engine.run import runner

POLL_S = 0.001
CLOCK = ("tokens_per_s",)
"""Fields of a record that differ from run to run because time does."""
WRITING, WRITTEN = ".step-*.partial", "step-*"
"""What a checkpoint looks like while it is written, and when it is whole."""
SOON_S = 0.01


@dataclass(frozen=True)
class Verdict:
    """What a resume check found.

    Attributes:
        differing: what is not the same in both runs; empty if all is.
        kills: how often the worker was really killed.
        resumed_from: the step of the newest whole checkpoint at each kill.
        num_steps: different steps that the killed run recorded.
        directory: of both runs, kept if they differ.
    """

    differing: list[str]
    kills: int
    resumed_from: list[int]
    num_steps: int
    directory: Path

    def __str__(self) -> str:
        told = f"{self.num_steps} steps, killed {self.kills} times (resumed from steps {self.resumed_from or 'none'})"
        if self.differing:
            return f"resume is NOT exact: {told}; differing: {', '.join(self.differing)}; both are in {self.directory}"
        return f"resume is exact: {told}; weights, records and samples are the same to the bit"


def check_resume(node: Node, outputs: Path, cache: Path, num_steps: int, num_kills: int, seed: int) -> Verdict:
    """Train `num_steps` steps of `node` twice, once with kills, and compare; its inputs are built first.

    Args:
        node: of a training stage.
        seed: of the moments of the kills.

    Raises:
        PipelineError: what `runner.run` raises; a failure of a worker that was not killed among it.
    """
    inputs = runner.run(list(node.inputs.values()), outputs, cache)
    short = _short(node, num_steps)
    scratch = outputs.absolute() / "resume_checks" / short.name
    shutil.rmtree(scratch, ignore_errors=True)
    for name in ("whole", "cut"):
        for source in node.inputs.values():
            link = scratch / name / "artifacts" / source.stage / inputs[source.fingerprint].name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(inputs[source.fingerprint], target_is_directory=True)
    whole = runner.run([short], scratch / "whole", cache)[short.fingerprint]
    resumed_from = _killed_runs(short, scratch / "cut", cache, num_kills, random.Random(seed))
    cut = runner.run([short], scratch / "cut", cache)[short.fingerprint]
    steps = {record["step"] for record in _records(cut, "samples")}
    verdict = Verdict(list(_differences(whole, cut)), len(resumed_from), resumed_from, len(steps), scratch)
    if not verdict.differing:
        shutil.rmtree(scratch)
    return verdict


def _short(node: Node, num_steps: int) -> Node:
    """The same node with a length in steps and a checkpoint after each of them."""
    budgets = ("num_tokens", "num_epochs", "num_flops")
    params = {key: None if key in budgets else value for key, value in node.params.items()} | {"num_steps": num_steps}
    here = {"inprocess": False, "slurm": None, "checkpoint_every_s": 0, "log_samples": True}
    launch = {**node.settings.get("launch", {}), **here}
    return Node(node.stage, node.label, node.version, params, node.inputs, {**node.settings, "launch": launch})


def _killed_runs(node: Node, outputs: Path, cache: Path, number: int, draw: random.Random) -> list[int]:
    """The step of the newest checkpoint at each kill."""
    resumed_from = []
    for index in range(number):
        checkpoints = artifact.partial(artifact.directory_of(node, outputs)) / "checkpoints"
        killer = _Killer(checkpoints, WRITING if index % 2 == 0 else WRITTEN, draw.random())
        with killer.waiting(), contextlib.suppress(StageError):
            runner.run([node], outputs, cache)
        if not killer.killed:
            break
        steps = [int(path.name.rpartition("-")[2]) for path in checkpoints.glob("step-*")]
        resumed_from.append(max(steps, default=0))
    return resumed_from


class _Killer:
    """Kills the worker that this process supervises: while it writes a checkpoint, or anywhere from one to the next."""

    def __init__(self, checkpoints: Path, sign: str, fraction: float) -> None:
        self._checkpoints, self._sign, self._fraction = checkpoints, sign, fraction
        self._over = threading.Event()
        self.killed = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        known = self._marks()
        times: list[float] = []
        while len(times) < 2:
            if self._over.wait(POLL_S):
                return
            if new := self._marks() - known:
                known |= new
                times.append(time.monotonic())
        longest_s = SOON_S if self._sign == WRITING else times[1] - times[0]
        time.sleep(self._fraction * longest_s)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                self.killed = True

    def _marks(self) -> set[tuple[str, int]]:
        found = set()
        for path in self._checkpoints.glob(self._sign):
            with contextlib.suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_ino))
        return found


def _differences(whole: Path, cut: Path) -> Iterator[str]:
    one, other = (_hashes(directory) for directory in (whole, cut))
    yield from sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    for name in ("metrics", "samples"):
        if _records(whole, name) != _records(cut, name):
            yield f"{name}.jsonl"


def _hashes(directory: Path) -> dict[str, str]:
    files = artifact.load_manifest(directory)["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.startswith("model/")}


def _records(directory: Path, name: str) -> list[dict[str, Any]]:
    lines = (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]
