"""Cells in processes of their own, however these end, and the driver that starts and stops them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.engine.errors import ArtifactError, ConfigError, Interrupted
from pipeline.engine.sweep.driver import run_cells
from pipeline.engine.sweep.record import Cell, Sweep, latest, load_sweep, new_run, this_process
from pipeline.engine.sweep.table import counts, failures, follow, plain_table
from tests.children import PATIENCE_S, wait_for
from tests.engine.sweep import fake_cells

ROOT = Path(__file__).parents[3]
DRIVER = """
import sys
from pathlib import Path
from tests.engine.sweep import test_cells as t
from pipeline.engine.errors import Interrupted
directory, *does = sys.argv[1:]
try:
    t.run_all(t.sweep_of(Path(directory)), does)
except Interrupted as stopped:
    sys.exit(str(stopped))
"""


def sweep_of(directory: Path, **changes) -> Sweep:
    sweep = Sweep(directory, new_run(), this_process(), "the same command", at_once=2, is_parallel=True)
    return replace(sweep, **changes)


def cells_of(does) -> list[Cell]:
    return [Cell(f"{number:04d}-x", f"n={number}", what) for number, what in enumerate(does)]


def run_all(sweep: Sweep, does, kills_others: bool = False) -> list[Cell]:
    """As a launcher does: a process for each cell, all at once; an error where one of them ended badly.

    `kills_others`: as joblib's does, it kills the processes of all cells when that of one dies.
    """
    cells = cells_of(does)

    def launch() -> None:
        started = [
            subprocess.Popen([sys.executable, "-m", fake_cells.__name__, str(sweep.directory), cell.key], cwd=ROOT)
            for cell in cells
        ]
        while kills_others and any(process.poll() is None for process in started):
            if any(process.poll() for process in started):
                for process in started:
                    process.kill()
            time.sleep(0.02)
        if any([process.wait() for process in started]):
            raise RuntimeError("a process of the launcher died")

    return run_cells(sweep, cells, launch)


def started(sweep: Sweep) -> list[str]:
    file = sweep.directory / "started"
    return file.read_text().splitlines() if file.exists() else []


def test_each_ends_as_it_does_and_the_rest_finish(tmp_path):
    sweep = sweep_of(tmp_path, threads=3, devices=[["4"], ["5"]])
    ended = run_all(sweep, ["ok", "fail", "crash", "kill", "kill_once", "ok"])
    assert [cell.state for cell in ended] == ["done", "failed", "failed", "failed", "done", "done"]
    assert [cell.error for cell in ended[1:3]] == ["ConfigError: found 3, required 4", "KeyError: 'no such thing'"]
    assert "killed 2 times, perhaps for want of memory" in ended[3].error
    assert [cell.starts for cell in ended] == [1, 1, 1, 2, 2, 1]
    assert {line.partition(" ")[2] for line in started(sweep)} <= {"3 4", "3 5"}
    assert "Traceback" in sweep.log(ended[2].key).read_text() and "Traceback" not in sweep.log(ended[1].key).read_text()
    told = failures(ended)
    assert "3 of 6 cells did not finish" in told and "n=1: ConfigError: found 3, required 4\n    rerun: fail" in told
    assert counts(ended) == "3 done, 3 failed" and failures(ended[:1]) == ""
    again = run_all(sweep_of(tmp_path), ["ok", "ok"])  # the state of an earlier start is none of this one's
    assert [cell.state for cell in again] == ["done", "done"]


def test_a_cell_that_is_killed_takes_none_down_for_good(tmp_path):
    """Where the launcher kills all for the death of one, those that were running run again, and one fails."""
    ended = run_all(sweep_of(tmp_path, at_once=4), ["ok", "meet", "kill", "meet", "ok"], kills_others=True)
    assert [cell.state for cell in ended] == ["done", "done", "failed", "done", "done"]
    assert ended[2].starts == 2 and load_sweep(tmp_path).at_once == 1


def test_no_more_run_at_once_than_there_are_slots_and_a_dead_one_frees_its_own(tmp_path):
    sweep, go = sweep_of(tmp_path / "sweep", at_once=2, is_parallel=False), tmp_path / "go"
    result: list[Cell] = []
    thread = threading.Thread(target=lambda: result.extend(run_all(sweep, [f"wait:{go}"] * 4)))
    thread.start()
    wait_for(lambda: len(started(sweep)) == 2)
    states = [cell.state for cell in sweep.cells()]
    assert sorted(states) == ["running", "running", "waiting", "waiting"]
    victim = next(cell for cell in sweep.cells() if cell.state == "running")
    os.kill(victim.process["pid"], signal.SIGKILL)
    wait_for(lambda: len(started(sweep)) == 3)
    assert "lost" in plain_table(sweep.cells()) and "building n=" in plain_table(sweep.cells())
    go.touch()
    thread.join(PATIENCE_S)
    assert [cell.state for cell in result] == ["done"] * 4 and len(started(sweep)) == 5


@pytest.fixture
def driver(tmp_path):
    """Starts a driver as a process, in a session of its own; nothing of it is left in the end."""
    found: list[subprocess.Popen] = []

    def start(*does: str) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, str(tmp_path), *does]
        found.append(subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True))
        wait_for(lambda: len(started(sweep_of(tmp_path))) >= 2)
        return found[-1]

    yield start
    for one in found:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def processes(directory: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if str(directory) in (p.info["cmdline"] or [])]


@pytest.mark.parametrize("whole_group", [True, False], ids=["from-a-terminal", "to-the-driver"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all_cells_in_good_order(tmp_path, driver, number, whole_group):
    running = driver(*["wait:/nowhere"] * 3)
    (os.killpg if whole_group else os.kill)(running.pid, number)
    words = running.communicate(timeout=PATIENCE_S)[1]
    assert running.returncode == 1 and "all cells were stopped" in words and f"received {number.name}" in words
    assert not processes(tmp_path)
    states = sorted(cell.state for cell in load_sweep(tmp_path).cells())
    assert states in (["stopped"] * 3, ["stopped", "stopped", "waiting"])  # a process may have come to nothing yet


def test_cells_end_when_their_driver_is_killed_and_the_next_start_goes_on(tmp_path, driver):
    running = driver("ok", f"wait:{tmp_path / 'go'}")
    wait_for(lambda: len(processes(tmp_path)) <= 2)  # the first cell has ended
    running.kill()
    running.wait()
    wait_for(lambda: not processes(tmp_path))
    sweep = load_sweep(tmp_path)
    assert not sweep.is_running and sorted(cell.state for cell in sweep.cells()) == ["done", "stopped"]
    (tmp_path / "go").touch()
    assert [cell.state for cell in run_all(sweep_of(tmp_path), ["ok", "ok"])] == ["done", "done"]


def test_the_same_sweep_runs_once_and_is_seen_from_elsewhere(tmp_path, driver):
    running = driver("ok", f"wait:{tmp_path / 'go'}")
    with pytest.raises(ConfigError, match=rf"running already, in process {running.pid} on .*pipeline.sweep"):
        run_all(sweep_of(tmp_path), ["ok"])
    shown = io.StringIO()
    follow(load_sweep(latest(tmp_path)), shown, lambda _: (tmp_path / "go").touch())
    assert "n=1: running" in shown.getvalue() and "n=1: done" in shown.getvalue()
    assert running.wait(PATIENCE_S) == 0


def test_a_launcher_that_starts_nothing_is_an_error_and_not_tried_again(tmp_path):
    tries = []

    def launch() -> None:
        tries.append(1)
        raise OSError("no such cluster")

    with pytest.raises(OSError, match="no such cluster"):
        run_cells(sweep_of(tmp_path), cells_of(["ok"]), launch)
    assert len(tries) == 1


def test_a_cell_in_the_drivers_process_is_interrupted_with_it(tmp_path):
    sweep, cells = sweep_of(tmp_path, is_parallel=False), cells_of(["ok", "ok"])

    def stopped(_) -> None:
        raise Interrupted("received SIGINT")

    with pytest.raises(Interrupted):
        run_cells(sweep, cells, lambda: fake_cells.run_cell(sweep, cells[0], stopped, fake_cells.tell, 1))
    assert [cell.state for cell in sweep.cells()] == ["stopped", "waiting"]


def test_where_no_sweep_is_that_is_said(tmp_path):
    with pytest.raises(ArtifactError, match="holds no sweep; one is started by"):
        latest(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ArtifactError, match="missing or damaged"):
        load_sweep(latest(tmp_path))
