"""Sweeps from the command line: what is asked for, run by each launcher, killed, interrupted, and gone on with."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import pipeline.__main__ as driver
from pipeline.command_line import sweep as module
from pipeline.command_line.arguments import arrange
from pipeline.command_line.short_forms import lengthened, literal_paths, settings_of
from pipeline.command_line.sweep import key_of, prepare
from pipeline.engine.errors import ArtifactError, ConfigError
from pipeline.engine.sweep.capacity import Machine, Need
from pipeline.engine.sweep.record import latest, load_sweep
from tests.children import PATIENCE_S, wait_for
from tests.command_line.sweeps import PLUGINS, ROOT, command, left, lines, made, start, write_toys

GIB = 1 << 30
LAUNCHERS = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(f"hydra_plugins.{plugin}"), reason=plugin))
    for name, plugin in PLUGINS.items()
]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What is prepared for a command line on a machine of 20 GiB and 8 cores, for cells of 4 GiB."""
    monkeypatch.setattr(module, "this_machine", lambda: Machine(20 * GIB, 8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def ask(*typed: str, need=lambda config: Need(4 * GIB)):
        given = [*typed, f"paths.outputs={tmp_path}"]
        return prepare(lengthened(arrange(given)), need)

    return ask


def test_one_run_is_no_sweep(asked):
    assert asked("expand.num_groups=2") is None and asked("experiment=lora") is None
    assert asked("-m", "experiment=lora") is not None


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["--info"], ["--version"], ["--hydra-help"]])
def test_what_only_tells_starts_no_sweep(asked, flag, tmp_path):
    assert asked(*flag, "experiment=num_blocks") is None and not list(tmp_path.iterdir())


def test_cells_are_named_by_what_differs_and_rerun_by_their_own_command(asked, tmp_path):
    found = asked("-m", "model=./a b,tiny", "pretrain.seed=1,2", "name=mine", "hydra.sweep.subdir=x")
    assert [cell.name for cell in found.cells] == [
        "model=./a b pretrain.seed=1",
        "model=./a b pretrain.seed=2",
        "model=tiny pretrain.seed=1",
        "model=tiny pretrain.seed=2",
    ]
    own = f"model=tiny pretrain.seed=2 name=mine paths.outputs={tmp_path}"
    assert found.cells[3].command == f"python -m pipeline {own}"
    again = lengthened(arrange(literal_paths(shlex.split(found.cells[0].command)[3:])))
    assert settings_of(again[0]) == ["model=local", "model.source.path=./a b"] and again[1] == "pretrain.seed=1"
    assert found.sweep.directory.parent == tmp_path / "runs" / "mine" / "sweeps"
    assert found.arguments[-1] == f"sweep.directory={found.sweep.directory}"


def test_the_same_cells_are_the_same_sweep_whatever_runs_them(asked):
    first, second = asked("-m", "expand.num_groups=1,2"), asked("-m", "hydra/launcher=basic", "expand.num_groups=1,2")
    other = asked("-m", "expand.num_groups=1,3")
    assert first.sweep.directory == second.sweep.directory != other.sweep.directory
    words = ["expand.num_groups=1", f"paths.outputs={first.sweep.directory.parents[3]}"]
    assert first.cells[0].key == key_of(0, [*words, "sweep.directory=/anywhere"]) != first.cells[1].key


def test_an_experiments_own_sweep_has_its_cells(asked):
    assert [cell.name for cell in asked("experiment=num_blocks").cells] == [
        f"expand.num_groups={number}" for number in (1, 2, 3, 5, 6)
    ]
    assert [cell.name for cell in asked("-m", "experiment=null,lora").cells] == ["experiment=none", "experiment=lora"]


@pytest.mark.parametrize(
    ("more", "settings", "at_once"),
    [
        ([], {"n_jobs": "3", "batch_size": "1"}, 4),
        (["sweep.max_parallel=2"], {"n_jobs": "2", "batch_size": "1"}, 2),
        (["hydra.launcher.n_jobs=7"], {"batch_size": "1"}, 4),
    ],
)
@pytest.mark.parametrize("launcher", LAUNCHERS[:1])
def test_joblib_runs_as_many_as_fit(asked, more, settings, at_once, launcher):
    found = asked("-m", f"hydra/launcher={launcher}", "pretrain.lr=1e-4,2e-4,3e-4", *more)
    given = dict(re.findall(r"hydra\.launcher\.(\w+)=(\w+)", " ".join(found.arguments)))
    assert {key: value for key, value in given.items() if f"hydra.launcher.{key}={value}" not in more} == settings
    assert (found.sweep.at_once, found.sweep.is_parallel) == (min(at_once, 3), True)
    assert found.sweep.threads == 8 // min(at_once, 3)


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
def test_submitit_kills_no_cell_after_an_hour(asked, launcher):
    found = asked("-m", f"hydra/launcher={launcher}", "pretrain.lr=1e-4,2e-4")
    assert "hydra.launcher.timeout_min=10080" in found.arguments and found.sweep.at_once == 2
    given = asked("-m", f"hydra/launcher={launcher}", "hydra.launcher.timeout_min=5", "pretrain.lr=1e-4,2e-4")
    assert "hydra.launcher.timeout_min=10080" not in given.arguments


@pytest.mark.parametrize("launcher", LAUNCHERS[:1])
def test_a_plan_says_how_many_and_leaves_nothing(asked, tmp_path, launcher):
    found = asked(
        "-m", f"hydra/launcher={launcher}", "dry_run=true", "hydra.launcher.n_jobs=3", "pretrain.lr=1e-4,2e-4"
    )
    assert found.sweep is None and "2 cells at once (4.5 GiB a cell of 20 GiB available; 8 cores" in found.capacity
    assert not [word for word in found.arguments if word.startswith("hydra")] and not list(tmp_path.iterdir())


def test_what_a_cell_takes_is_what_its_stages_forecast(asked):
    """Of the embedded model, before anything is downloaded: instruction tuning takes the most."""
    found = asked("-m", "sft.seq_len=128,512", "launch.num_processes=2", need=driver._need).plans.found
    small, large = found[0].need, found[1].need
    assert small.memory_bytes < large.memory_bytes and 3 * GIB < large.memory_bytes < 9 * GIB
    assert (large.processes, large.threads, large.on_devices) == (2, None, True)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["-m", "sweep.max_parallel=2", "pretrain.lr=1,2"], "add hydra/launcher=joblib"),
        (["-m", "sweep.max_parallel=0", "pretrain.lr=1,2"], "must be auto or a whole number of at least 1"),
        (["-m", "sweep.max_parallel=many", "pretrain.lr=1,2"], "must be auto or a whole number of at least 1"),
        (["-m", "-cp", "/conf", "pretrain.lr=1,2"], "hydra.searchpath"),
        (["-m", "sweep.planning_s=soon", "pretrain.lr=1,2"], "must be a number of seconds, 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(asked, typed, answer):
    with pytest.raises(ConfigError, match=re.escape(answer)):
        asked(*typed)


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
def test_a_clusters_launcher_has_its_own_limit(asked, launcher):
    assert asked("-m", "hydra/launcher=submitit_slurm", "pretrain.lr=1,2").sweep.at_once is None
    with pytest.raises(ConfigError, match=r"not for hydra/launcher=submitit_slurm.*array_parallelism"):
        asked("-m", "hydra/launcher=submitit_slurm", "sweep.max_parallel=2", "pretrain.lr=1,2")


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(asked, monkeypatch, launcher):
    monkeypatch.setattr(module, "_is_installed", lambda package: False)
    with pytest.raises(ConfigError, match=re.escape(f"{launcher} needs an extra: pip install -e '.[sweeps]'")):
        asked("-m", f"hydra/launcher={launcher}", "pretrain.lr=1,2")


def test_one_cell_after_another_in_the_drivers_process(monkeypatch, tmp_path, capfd):
    """What fails is named with its command, the rest finishes, and the command runs what failed alone."""
    for name, value in write_toys(tmp_path, go=(1, 2)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", command(tmp_path, "launch=inprocess", "toy.value=1,13,7,2")[2:])
    assert driver.run() == 1
    words = capfd.readouterr().err
    assert "2 of 4 cells did not finish" in words and "2 done, 2 failed" in words
    assert "toy.value=13: ConfigError: toys.made: value=13 is unlucky; use another" in words
    assert "toy.value=7: stage made failed: ValueError: seven" in words
    assert len(made(tmp_path)) == 2 and lines(tmp_path / "bases") == ["made"]
    again = shlex.split(re.findall(r"rerun: (.*toy.value=7)$", words, re.M)[0])
    monkeypatch.setattr(sys, "argv", again[2:])
    assert driver.run() == 1 and "seven" in capfd.readouterr().err
    sweep = load_sweep(latest(tmp_path / "outputs"))
    assert [cell.state for cell in sweep.cells()] == ["done", "failed", "failed", "done"]
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.sweep", str(tmp_path / "outputs")], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0 and shown.stdout.count("rerun: ") == 2 and f"resume: {sweep.command}" in shown.stdout
    asked = [sys.executable, "-m", "pipeline.sweep", str(tmp_path / "outputs"), "--report"]
    refused = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "makes a report, or none has started" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_cells_side_by_side(tmp_path, launcher):
    """What they share is built once, failures are named, and a second start builds nothing that is there."""
    environment = write_toys(tmp_path, go=(3,))
    asked = ["toy.value=1,2,13,7,3", f"hydra/launcher={launcher}", "sweep.max_parallel=2"]
    running = start(tmp_path, environment, *asked)
    # Two at once; with processes of their own, cells that end by themselves may have had their turn before.
    wait_for(lambda: at_work(tmp_path) == ["toy.value=1", "toy.value=2"], (tmp_path / "words").read_text)
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.sweep", str(tmp_path / "outputs")], cwd=ROOT, capture_output=True, text=True
    )
    states = {state: int(number) for number, state in map(str.split, shown.stdout.splitlines()[-1].split(", "))}
    assert states["running"] == 2 and sum(states.values()) == 5 and "toys.made" in shown.stdout
    for value in (1, 2):
        (tmp_path / f"go-{value}").touch()
    assert running.wait(PATIENCE_S) == 1
    words = (tmp_path / "words").read_text()
    assert "3 done, 2 failed" in words and "stage made failed: ValueError: seven" in words
    assert lines(tmp_path / "bases") == ["made"] and len(made(tmp_path)) == 3
    assert {line.split()[2] for line in lines(tmp_path / "runs")} == {str(load(tmp_path).threads)}
    alone = {cell.command for cell in load(tmp_path).cells()}
    for path in made(tmp_path):  # an artifact keeps the command that makes it again, whichever launcher made it
        argv = json.loads((path / "manifest.json").read_text())["provenance"]["argv"]
        assert shlex.join(["python", "-m", "pipeline", *argv[1:]]) in alone
    before = {path: path.stat().st_mtime_ns for path in made(tmp_path)}
    assert start(tmp_path, environment, "toy.value=1,2,3", *asked[1:]).wait(PATIENCE_S) == 0
    assert {path: path.stat().st_mtime_ns for path in made(tmp_path)} == before


def load(folder: Path):
    return load_sweep(latest(folder / "outputs"))


def at_work(folder: Path) -> list[str]:
    """The cells whose worker runs."""
    with suppress(ArtifactError):
        return [one.name for one in load(folder).cells() if one.state == "running" and "toys.made" in one.doing]
    return []


@pytest.fixture
def toys(tmp_path):
    """A folder with toys; no process that knows of it is left in the end."""
    yield tmp_path
    for process in left(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def resumed(folder: Path) -> list[int]:
    return [json.loads((path / "manifest.json").read_text())["metrics"]["resumed"] for path in made(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("killed", ["cell", "driver"])
def test_a_kill_loses_no_finished_cell(toys, launcher, killed):
    environment = write_toys(toys, go=(1,))
    asked = ["toy.value=1,2,3", f"hydra/launcher={launcher}", "sweep.max_parallel=2"]
    running = start(toys, environment, *asked)
    wait_for(lambda: len(lines(toys / "runs")) == 3, (toys / "words").read_text)  # 1 is done; 2 and 3 wait
    before = {path: path.stat().st_mtime_ns for path in made(toys)}
    assert len(before) == 1
    if killed == "cell":
        victim = next(cell for cell in load(toys).cells() if cell.state == "running")
        os.kill(victim.process["pid"], signal.SIGKILL)
        wait_for(lambda: list(toys.glob("outputs/artifacts/toys.made/*.partial/step")), (toys / "words").read_text)
    else:
        running.kill()
        running.wait()
        wait_for(lambda: not left(toys))
    for value in (2, 3):
        (toys / f"go-{value}").touch()
    if killed == "driver":
        assert sorted(cell.state for cell in load(toys).cells()) == ["done", "stopped", "stopped"]
        running = start(toys, environment, *asked)
    assert running.wait(PATIENCE_S) == 0, (toys / "words").read_text()
    assert len(made(toys)) == 3 and lines(toys / "bases") == ["made"]
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    assert max(resumed(toys)) >= 1  # what the stopped one had saved was taken up


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_in_a_terminal_stops_all_cells_with_their_state_saved(toys, launcher):
    environment = write_toys(toys)
    asked = ["toy.value=1,2,3", f"hydra/launcher={launcher}", "sweep.max_parallel=2"]
    running = start(toys, environment, *asked)
    wait_for(lambda: len(lines(toys / "runs")) == 2, (toys / "words").read_text)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(PATIENCE_S) == 130, (toys / "words").read_text()
    wait_for(lambda: not left(toys))  # joblib's own processes end when their pipe to the driver does, just after it
    assert [cell.state for cell in load(toys).cells()] == ["stopped"] * 3
    assert "the same command resumes" in (toys / "words").read_text()
    for value in (1, 2, 3):
        (toys / f"go-{value}").touch()
    assert start(toys, environment, *asked).wait(PATIENCE_S) == 0
    assert sorted(resumed(toys)) == [0, 1, 1]
