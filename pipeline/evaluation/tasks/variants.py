"""Variants of lm-evaluation-harness' tasks: the official definition, a few changed keys, rows of one's own.

A variant is a yaml file that includes the official one: `lm_eval --include_path DIR --tasks NAME` scores the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.tasks import definitions
from pipeline.evaluation.tasks.rows import Rows

_SPLIT_KINDS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Variant:
    """One task to be loaded.

    Attributes:
        official: file of the definition that it extends.
        changes: keys that differ.
        rows: its data by split; None loads the task's own data set from the hub, at `revision`.
    """

    official: Path
    changes: Mapping[str, Any]
    rows: Mapping[str, Rows] | None
    revision: str | None = None


def write(variants: Sequence[Variant], folder: Path) -> list[str]:
    """Write the definitions and their rows below `folder`; the names of the tasks, in order."""
    names = []
    for variant in variants:
        fields = definitions.fields(variant.official)
        own = {"include": str(variant.official), "task": fields["task"], **variant.changes}
        place = folder / fields["task"]
        place.mkdir(parents=True)
        (place / "task.yaml").write_text(json.dumps({**own, **_data(variant, fields, place)}))  # JSON is YAML
        names.append(fields["task"])
    return names


def load(variants: Sequence[Variant]) -> list[Any]:
    """lm-evaluation-harness' task objects, with their data in memory."""
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as scratch:
        names = write(variants, Path(scratch))
        tasks = TaskManager(include_path=scratch, include_defaults=False).load(names)["tasks"]
    return [tasks[name] for name in names]


def _data(variant: Variant, fields: Mapping[str, Any], place: Path) -> dict[str, Any]:
    if variant.rows is None:
        return {"dataset_kwargs": {**(fields.get("dataset_kwargs") or {}), "revision": variant.revision}}
    files = {split: str(place / f"{split}.jsonl") for split in variant.rows}
    for split, path in files.items():
        lines = (json.dumps(row) + "\n" for row in variant.rows[split])
        Path(path).write_text("".join(lines), encoding="utf-8")
    kwargs = {"data_files": files, "cache_dir": str(place / "cache"), "keep_in_memory": True}
    # A split of the official definition for which there are no rows is not asked for.
    absent = {kind: None for kind in _SPLIT_KINDS if fields.get(kind) and fields[kind] not in files}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs, **absent}
