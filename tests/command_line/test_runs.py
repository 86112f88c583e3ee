"""The page of all runs says what ran and in what two runs differ, and works in a browser."""

import hashlib
import json
from dataclasses import replace

import pytest

from pipeline.engine.graph import identify
from pipeline.engine.sweep.record import Cell, Sweep, new_run, this_process
from pipeline.runs.__main__ import main
from pipeline.runs.page import read_runs, with_sweeps
from tests.reporting.browser import browser, find_browser

BAD_REQUEST = 2


def artifact(outputs, stage, params) -> dict:
    """A committed artifact with a manifest, as the graph of a run names it."""
    fingerprint = identify(stage, 1, params, {})
    name = f"{stage}-{fingerprint[:12]}"
    directory = outputs / "artifacts" / stage / name
    directory.mkdir(parents=True, exist_ok=True)
    made = {
        "finished": f"2026-11-0{len(params)}T10:00:00+0000", "wall_time_s": 90.0,
        "git": {"commit": hashlib.sha256(b"x").hexdigest()[:40], "dirty": True},
    }  # fmt: skip
    manifest = {"stage": stage, "label": stage, "version": 1, "fingerprint": fingerprint, "params": params}
    manifest |= {"inputs": {}, "metrics": {}, "files": {}, "provenance": made}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return {"stage": stage, "label": stage, "params": params, "inputs": {}, "artifact": f"{stage}/{name}"}


def run(outputs, name, variant, **params):
    nodes = {str(i): artifact(outputs, "pretrain", params) for i in range(1)}
    graph = {"variant": variant, "overrides": [], "nodes": nodes, "models": {"base": "0"}, "benchmarks": {"domain": {}}}
    file = outputs / "runs" / name / variant / "graph.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(graph))


@pytest.fixture
def outputs(tmp_path):
    run(tmp_path, "demo", "default", lr=1e-3)
    run(tmp_path, "law", "pretrain.lr=2e-4", lr=2e-4, text="</script><b>bold</b>")
    (tmp_path / "reports/demo").mkdir(parents=True)
    (tmp_path / "reports/demo/index.html").write_text("<p>report</p>")
    (tmp_path / "reports/demo/data.json").write_text(json.dumps({"answer": "It learned the domain."}))
    return tmp_path


def test_what_ran(outputs):
    first, second = read_runs(outputs)
    assert (first["name"], first["variant"], first["answer"]) == ("demo", "default", "It learned the domain.")
    assert first["report"] == "reports/demo/index.html" and second["report"] == ""
    assert first["settings"] == {"pretrain.lr": "0.001"} and second["settings"]["pretrain.lr"] == "0.0002"
    assert first["seconds"] == 90.0 and first["commits"] == [hashlib.sha256(b"x").hexdigest()[:10] + "+"]


def test_a_run_whose_name_names_folders_has_its_report(outputs):
    run(outputs, "law/first", "default", lr=1.0)
    (outputs / "reports/law/first").mkdir(parents=True)
    (outputs / "reports/law/first/data.json").write_text(json.dumps({"answer": "Nested."}))
    (found,) = (one for one in read_runs(outputs) if one["name"] == "law/first")
    assert found["answer"] == "Nested."


def test_what_is_missing_of_a_runs_sweep_is_told_with_its_command(outputs):
    left = Sweep(
        outputs / "runs/law/sweeps/a", new_run(), this_process(), "python -m pipeline -m pretrain.lr=2e-4,1e30"
    )
    cells = [
        Cell(f"{n}", f"pretrain.lr={lr}", f"run {lr}", f"pretrain.lr={lr}") for n, lr in enumerate(("2e-4", "1e30"))
    ]
    report = {"name": "law"}
    left.begin([replace(cells[0], state="done", report=report), replace(cells[1], state="failed", error="it is nan")])
    found = {run["variant"]: run for run in with_sweeps(list(read_runs(outputs)), outputs)}
    assert (
        found["default"]["sweep"] == ""
        and "1 of 2 cells of this sweep is missing: pretrain.lr=1e30 (it is nan)"
        in (found["pretrain.lr=2e-4"]["sweep"])
    )
    lost = found["pretrain.lr=1e30"]
    assert (lost["name"], lost["answer"], lost["sweep"]) == ("law", "Missing: it is nan", "Run it alone: run 1e30")
    assert main([str(outputs)]) == 0 and "it is nan" in (outputs / "index.html").read_text()


def test_a_page_is_written_and_what_is_wrong_is_said(outputs, capsys):
    assert main([str(outputs)]) == 0 and capsys.readouterr().out.strip() == str(outputs / "index.html")
    assert "</script><b>" not in (outputs / "index.html").read_text()
    assert main([str(outputs / "artifacts")]) == BAD_REQUEST and "holds no run" in capsys.readouterr().err
    (outputs / "runs/demo/default/graph.json").write_text("{")
    assert main([str(outputs)]) == BAD_REQUEST and "is damaged" in capsys.readouterr().err


@pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_in_a_browser(outputs, width):
    main([str(outputs)])
    page = outputs / "index.html"
    with browser(find_browser()) as opened:
        seen = opened.look(page, width, dark=width == 400)
        assert seen.errors == [] and seen.facts["too_wide"] == [] and seen.facts["scroll_width"] <= width
        ticked = "document.querySelectorAll('input[type=checkbox]').forEach(box => box.click());"
        text = opened.evaluate(ticked + "document.getElementById('compared').textContent")
        assert "Settings that differ" in text and "pretrain.lr" in text and "0.0002" in text
        searched = "const w = document.getElementById('words'); w.value = 'law'; w.oninput();"
        text = opened.evaluate(searched + "document.getElementById('runs').textContent")
        assert "law" in text and "demo" not in text
