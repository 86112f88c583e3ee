"""Cells of a sweep that cannot run: known before the first starts, and no reason for the others not to run."""

from __future__ import annotations

import json
import sys
import time

import pytest
from omegaconf.errors import OmegaConfBaseException

import pipeline.__main__ as driver
from pipeline.command_line.cell_plans import CellPlans
from pipeline.engine.errors import ConfigError
from pipeline.engine.sweep.capacity import Need
from pipeline.engine.sweep.record import latest, load_sweep
from tests.children import wait_for
from tests.command_line.sweeps import command, lines, made, write_toys

REFUSED = "refused before it runs: toy.value={0}: ConfigError: toys.made: value={0} is unlucky; use another"


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """The driver's exit status and what it says for these words, with toys."""
    for name, value in write_toys(tmp_path, go=(1, 2)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))

    def ask(*words: str, flag: str = "-m"):
        monkeypatch.setattr(sys, "argv", command(tmp_path, "launch=inprocess", *words, flag=flag)[2:])
        return driver.run(), capfd.readouterr().err

    return ask


def test_a_refused_cell_is_told_before_any_runs_and_the_others_run(run, tmp_path):
    status, words = run("toy.value=1,13,2")
    assert status == 1 and words.index(REFUSED.format(13)) < words.index("building")
    assert "2 done, 1 failed" in words and len(made(tmp_path)) == 2
    sweep = load_sweep(latest(tmp_path / "outputs"))
    assert [(cell.state, cell.starts) for cell in sweep.cells()] == [("done", 1), ("failed", 0), ("done", 1)]


def test_nothing_starts_where_all_cells_are_refused(run, tmp_path):
    status, words = run("toy.value=13,26")
    assert status == 1 and "all cells are refused; nothing was started" in words
    assert all(REFUSED.format(value) in words for value in (13, 26)) and "2 of 2 cells did not finish" in words
    assert not (tmp_path / "outputs" / "artifacts").exists() and not lines(tmp_path / "bases")
    sweep = load_sweep(latest(tmp_path / "outputs"))
    assert not sweep.is_running and [cell.state for cell in sweep.cells()] == ["failed", "failed"]


def test_a_cell_of_which_no_config_can_be_made_is_named_and_nothing_starts(run, tmp_path):
    status, words = run("toy.value=1", "expand=block,blok")
    assert status == 1 and "no cell was started: expand=blok: expand has no 'blok'; did you mean block?" in words
    assert not (tmp_path / "outputs" / "artifacts").exists()


def test_what_is_not_planned_in_time_is_planned_while_others_run(run, tmp_path):
    status, words = run("toy.value=1,2,13", "sweep.planning_s=0")
    assert status == 1 and "3 of 3 cells are planned while the first run" in words
    assert "2 done, 1 failed" in words and "value=13 is unlucky" in words


def test_an_artifact_keeps_the_words_as_they_were_typed(run, tmp_path):
    words = ["toy.value=2", "expand=null", "paths.cache=a b"]
    assert run(*words, flag="launch=inprocess")[0] == 0
    (manifest,) = [json.loads((path / "manifest.json").read_text()) for path in made(tmp_path)]
    assert manifest["provenance"]["argv"][-3:] == words


def plan(words):
    """As the driver plans a cell."""
    if words[0] == "wrong":
        raise ConfigError("x=3 must be 4\nmore")
    if words[0] == "broken":
        raise KeyError("no such thing")
    return Need(int(words[0]))


def compose(words):
    if words == ["nothing"]:
        raise OmegaConfBaseException("no such option")
    time.sleep(30 if words == ["slow"] else 0)
    return words


def test_each_plan_is_what_planning_found(capfd):
    plans = CellPlans([["1"], ["wrong"], ["broken"], ["nothing"], ["5"]], compose, plan)
    plans.wait(60)
    found = [plans.found[index] for index in range(5)]
    assert [one.need and one.need.memory_bytes for one in found] == [1, None, None, None, 5]
    assert [one.refusal for one in found] == [
        "",
        "ConfigError: x=3 must be 4\nmore",
        "",
        "ConfigError: no such option",
        "",
    ]
    assert [one.is_composed for one in found] == [True, True, True, False, True]
    assert "KeyError" in capfd.readouterr().err and list(plans.later()) == []


def test_waiting_for_plans_ends_and_so_do_their_processes():
    plans = CellPlans([["slow"]] * 4, compose, plan)
    began = time.monotonic()
    plans.wait(0.2)
    assert time.monotonic() - began < 5 and plans.found == {}
    plans.stop()
    assert list(plans.later()) == []
    wait_for(lambda: not any(process.is_alive() for process in plans._processes))
