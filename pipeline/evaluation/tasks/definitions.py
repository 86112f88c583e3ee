"""Task definitions of the installed lm-evaluation-harness, read without importing it: requests are checked early.

A definition is a yaml file below `lm_eval/tasks`, with includes. Its functions stay unread; its fields are plain data.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

_COLUMN = re.compile(r"\{(\w+)\}")


def column(task: str) -> str | None:
    """The column that tells the subtasks of a pattern apart: "subject" of "mmlu/default/mmlu_{subject}"."""
    match = _COLUMN.search(task)
    return match[1] if match else None


def subtasks(task: str) -> dict[str, Path]:
    """Value of the column -> definition, for a pattern in the order of the values; {"": definition} for a plain task.

    Raises:
        ValueError: lm_eval has no such task; the message names what is near it.
    """
    if column(task) is None:
        return {"": definition(task)}
    before, after = _COLUMN.split(task)[0], _COLUMN.split(task)[-1]
    root = _root()
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.glob(f"{before}*{after}.yaml"))}
    if not files or ".." in before + after:
        raise ValueError(f"lm_eval has no task files {before}*{after}.yaml; {_near(task)}")
    return {name[len(before) : len(name) - len(f"{after}.yaml")]: path for name, path in files.items()}


def definition(task: str) -> Path:
    """The file of one task, "arc/arc_easy". Raises ValueError if lm_eval has none; the message names what is near."""
    root = _root()
    path = root / f"{task}.yaml"
    if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        raise ValueError(f"lm_eval has no task file {task}.yaml; {_near(task)}")
    return path


def fields(path: Path) -> dict[str, Any]:
    """The fields of a definition with its includes, functions left out."""
    return copy.deepcopy(_fields(path))


@lru_cache(maxsize=256)
def _fields(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    own = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    includes = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        merged |= fields(path.parent / name)
    return merged | own


def metrics(definition_fields: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that a definition lists."""
    return [entry["metric"] for entry in definition_fields.get("metric_list") or []]


def filters(definition_fields: Mapping[str, Any]) -> list[str]:
    """Names of the ways in which a definition reads an answer out of what was generated; "none" is the plain one."""
    return [entry["name"] for entry in definition_fields.get("filter_list") or []] or ["none"]


def scored_split(definition_fields: Mapping[str, Any]) -> str:
    """The split whose documents are scored: the test split if there is one."""
    return definition_fields.get("test_split") or definition_fields["validation_split"]


def example_split(definition_fields: Mapping[str, Any]) -> str | None:
    """The split that the examples of a prompt come from, by lm-evaluation-harness' own rule; None if it brings them."""
    if (definition_fields.get("fewshot_config") or {}).get("samples"):
        return None
    kinds = ("fewshot_split", "training_split", "validation_split", "test_split")
    return next((definition_fields[kind] for kind in kinds if definition_fields.get(kind)), None)


def _root() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ValueError("lm-evaluation-harness is not installed; install `lm-eval`")
    return Path(spec.origin).parent / "tasks"


def _near(task: str) -> str:
    root = _root()
    folder = (root / task).parent if (root / task).parent.is_dir() and ".." not in task else root
    near = sorted(path.relative_to(root).with_suffix("").as_posix() for path in folder.glob("*.yaml"))[:8]
    return f"near it are {', '.join(near) or ', '.join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8])}"
