"""The page of all runs: read from the graphs that runs leave, the manifests that these name, and their reports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.engine import artifact
from pipeline.engine.errors import ConfigError
from pipeline.engine.sources.hashes import write_atomic
from pipeline.reporting.pages.items_page import embedded

TEMPLATE = Path(__file__).with_name("page.html")
PAGE = "index.html"


def write_page(outputs: Path) -> Path:
    """Write `index.html` into an outputs folder; returns its path.

    Raises:
        ConfigError: the folder holds no run.
    """
    runs = sorted(read_runs(outputs), key=lambda run: str(run["finished"]), reverse=True)
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
            "answer": answer(outputs / "reports" / run["name"] / "data.json"),
        }


def _run(file: Path, graph: Mapping[str, Any], outputs: Path) -> dict[str, Any]:
    name = file.parents[1].relative_to(outputs / "runs").as_posix()
    report = outputs / "reports" / name
    settings: dict[str, Any] = {}
    for node in graph["nodes"].values():
        settings |= dict(_flat(node["params"], node["label"]))
    return {
        "name": name,
        "variant": graph["variant"],
        "models": list(graph["models"]),
        "benchmarks": list(graph["benchmarks"]),
        "report": os.path.relpath(report / "index.html", outputs) if (report / "index.html").is_file() else "",
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
