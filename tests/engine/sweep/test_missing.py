"""Which cells a report lacks: by what the sweep that was started last recorded, and by what the run has."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest

from pipeline.engine.sweep.driver import run_cells
from pipeline.engine.sweep.missing import missing_cells, reported_runs
from pipeline.engine.sweep.record import DONE, FAILED, RUNNING, STOPPED, Cell, Sweep, new_run, this_process

NOW = 1_000_000.0


def cell(number: int, **changes) -> Cell:
    made = Cell(f"{number:04d}-x", f"n={number}", f"run n={number}", f"all,n={number}", report={"name": "mine"})
    return replace(made, **changes)


@pytest.fixture
def sweep(tmp_path):
    """A sweep of these cells below the run `mine`."""

    def make(*cells: Cell, name: str = "a", run: str = "mine") -> Sweep:
        directory = tmp_path / "runs" / run / "sweeps" / name
        made = Sweep(directory, new_run(), this_process(), "the same command")
        made.begin(cells)
        return made

    return make


def test_each_missing_cell_has_its_reason(sweep, tmp_path):
    sweep(
        cell(1, state=DONE),
        cell(2, state=FAILED, error="too high", began=NOW),
        cell(3, report=None),
        cell(4, state=RUNNING, process=this_process()),
        cell(5, state=STOPPED, error="by hand"),
        cell(6, state=DONE),
        cell(7, state=RUNNING),
    )
    found = missing_cells(tmp_path, "mine", {"all,n=1": NOW, "something else": NOW})
    assert (found["num_cells"], found["present"], found["command"]) == (7, ["n=1"], "the same command")
    assert {one["cell"]: one["why"] for one in found["missing"]} == {
        "n=2": "too high",
        "n=3": "not run yet",
        "n=4": "running",
        "n=5": "stopped before it was done",
        "n=6": "its results were deleted since",
        "n=7": "lost",
    }
    assert found["missing"][0] == {"cell": "n=2", "variant": "all,n=2", "why": "too high", "command": "run n=2"}
    assert reported_runs(tmp_path) == ["mine"] and missing_cells(tmp_path, "other", {}) is None


def test_a_cell_that_succeeded_alone_since_is_there_and_what_an_earlier_start_left_is_not_its_own(sweep, tmp_path):
    sweep(cell(1, state=DONE), cell(2, state=FAILED, error="too high", began=NOW))
    assert missing_cells(tmp_path, "mine", {"all,n=1": NOW, "all,n=2": NOW + 9}) is None
    (found,) = missing_cells(tmp_path, "mine", {"all,n=1": NOW, "all,n=2": NOW - 9})["missing"]
    assert found["why"] == "too high; what stands here of it is of an earlier start"


def test_the_sweep_that_was_started_last_counts_and_only_for_its_own_run(sweep, tmp_path):
    first = sweep(cell(1, state=FAILED, error="no"))
    os.utime(first.directory / "sweep.json", (time.time() - 60,) * 2)
    sweep(cell(2, state=DONE), cell(3, report={"name": "theirs"}), name="b")
    assert missing_cells(tmp_path, "mine", {"all,n=2": NOW}) is None
    assert missing_cells(tmp_path, "theirs", {})["missing"][0]["why"] == "not run yet"
    sweep(cell(4, report=None), name="c")  # of models alone: no report is asked for
    assert missing_cells(tmp_path, "mine", {"all,n=2": NOW}) is None


def test_a_sweep_of_an_earlier_version_is_shown_and_says_nothing_of_reports(sweep, tmp_path):
    made = sweep(cell(1, state=FAILED, error="no"))
    (file,) = (made.directory / "cells").glob("*.json")
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "variant"}))
    assert [one.error for one in made.cells()] == ["no"] and missing_cells(tmp_path, "mine", {}) is None


def test_no_launcher_is_asked_where_all_cells_are_refused_and_later_refusals_reach_waiting_cells(sweep, tmp_path):
    refused = [cell(1, state=FAILED, error="no"), cell(2, state=FAILED, error="no")]
    made = Sweep(tmp_path / "s", new_run(), this_process(), "again")
    assert [one.state for one in run_cells(made, refused, lambda: pytest.fail("launched"))] == [FAILED] * 2

    def launch() -> None:
        until = time.monotonic() + 60
        while made.read("0002-x").state != FAILED and time.monotonic() < until:
            time.sleep(0.02)
        made.write(cell(1, state=DONE))

    ended = run_cells(made, [cell(1), cell(2)], launch, [("0002-x", "too late"), ("0009-x", "no such cell")])
    assert [(one.state, one.error) for one in ended] == [(DONE, ""), (FAILED, "too late")]
