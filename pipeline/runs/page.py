"""The page of all runs: read from the graphs that runs leave, the manifests that these name, and their reports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.engine import artifact
from pipeline.engine.errors import ConfigError
from pipeline.engine.sources.hashes import write_atomic
from pipeline.engine.sweep.missing import missing_cells, reported_runs
from pipeline.reporting.missing_cells import missing_lines
from pipeline.reporting.pages.items_page import embedded

TEMPLATE = Path(__file__).with_name("page.html")
PAGE = "index.html"


def write_page(outputs: Path) -> Path:
    """Write `index.html` into an outputs folder; returns its path.

    Raises:
        ConfigError: the folder holds no run.
    """
    found = list(read_runs(outputs))
    runs = sorted(with_sweeps(found, outputs), key=lambda run: str(run["finished"]), reverse=True)
    if not runs:
        raise ConfigError(f"{outputs} holds no run ({outputs}/runs/NAME/VARIANT/graph.json); give paths.outputs of one")
    write_atomic(outputs / PAGE, TEMPLATE.read_text(encoding="utf-8").replace('"RUNS"', embedded(runs)))
    return outputs / PAGE


def read_runs(outputs: Path) -> Iterator[dict[str, Any]]:
    """Every variant of every run that left a graph, as plain values."""
    made, answer = cache(_made), cache(_answer)  # which the variants of a run share
    for file in sorted((outputs / "runs").glob("**/graph.json")):
        try:
            graph = json.loads(file.read_text(encoding="utf-8"))
            directories = [outputs / "artifacts" / node["artifact"] for node in graph["nodes"].values()]
            run = _run(file, graph, outputs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is damaged ({error!r}); delete it, or run the run again") from error
        done = [one for directory in directories if (one := made(directory)) is not None]
        yield run | {
            "finished": max((str(one["finished"]) for one in done), default=""),
            "seconds": round(sum(float(one.get("wall_time_s") or 0) for one in done), 1),
            "commits": sorted({_commit(one.get("git")) for one in done} - {""}),
            "missing": len(directories) - len(done),
            "recorded_at": file.stat().st_mtime,
            "answer": answer(outputs / "reports" / run["name"] / "data.json"),
        }


def with_sweeps(runs: Sequence[Mapping[str, Any]], outputs: Path) -> Iterator[dict[str, Any]]:
    """The variants with what is missing of the sweep of their run, and each cell that is missing."""
    names = dict.fromkeys([*(str(run["name"]) for run in runs), *reported_runs(outputs)])
    for name in names:
        own = [run for run in runs if run["name"] == name]
        whole = {run["variant"]: run["recorded_at"] for run in own if not run["missing"]}
        sweep = missing_cells(outputs, name, whole)
        told = " ".join(missing_lines(sweep))
        yield from ({**run, "sweep": told} for run in own)
        for cell in sweep["missing"] if sweep else ():
            yield {**_missing(name, outputs), "variant": cell["cell"], "answer": f"Missing: {cell['why']}"} | {
                "sweep": f"Run it alone: {cell['command']}"
            }


def _missing(name: str, outputs: Path) -> dict[str, Any]:
    """A cell of a run that left nothing."""
    lists = {key: list[str]() for key in ("models", "benchmarks", "commits")}
    return {
        "name": name,
        "report": _report(name, outputs),
        "settings": {},
        "finished": "",
        "seconds": 0.0,
        "missing": 0,
        **lists,
    }


def _report(name: str, outputs: Path) -> str:
    page = outputs / "reports" / name / "index.html"
    return os.path.relpath(page, outputs) if page.is_file() else ""


def _run(file: Path, graph: Mapping[str, Any], outputs: Path) -> dict[str, Any]:
    name = file.parents[1].relative_to(outputs / "runs").as_posix()
    settings: dict[str, Any] = {}
    for node in graph["nodes"].values():
        settings |= dict(_flat(node["params"], node["label"]))
    return {
        "name": name,
        "variant": graph["variant"],
        "models": list(graph["models"]),
        "benchmarks": list(graph["benchmarks"]),
        "report": _report(name, outputs),
        "settings": settings,
    }


def _made(directory: Path) -> dict[str, Any] | None:
    """The provenance of an artifact; None where it was deleted since."""
    if not artifact.is_committed(directory):
        return None
    return dict(artifact.load_manifest(directory)["provenance"])


def _commit(git: Any) -> str:
    commit = str(git.get("commit") or "")[:10] if isinstance(git, Mapping) else ""
    return f"{commit}+" if commit and git.get("dirty") else commit


def _answer(file: Path) -> str:
    return str(json.loads(file.read_text(encoding="utf-8")).get("answer") or "") if file.is_file() else ""


def _flat(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}")
    else:
        yield key, json.dumps(node, ensure_ascii=False)
