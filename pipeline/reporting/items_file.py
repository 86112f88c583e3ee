"""Reads the items that an evaluation left: `items.parquet`, or the `items.json` of earlier versions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.reporting.statistics.intervals import Floats, Items

FILE, EARLIER = "items.parquet", "items.json"
NUMERIC = ["id", "hash", "category", "numerator", "denominator", "parts"]
TEXTS = ["prompt", "answer", "gold"]


@dataclass(frozen=True)
class ItemText:
    """What people read of one item."""

    prompt: str
    answer: str
    gold: str


def read_items(directory: Path) -> tuple[Items, dict[str, Any]]:
    """The items of an evaluation artifact, (N,) each, and the facts kept beside them (`notes`, `diagnosis`).

    Raises:
        ValueError: naming the directory, if there are none or they are not what they should be.
    """
    if not (directory / FILE).is_file():
        return _read_earlier(directory)
    try:
        table = pq.read_table(directory / FILE, columns=NUMERIC)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        facts = json.loads(metadata["facts"])
        columns = table.to_pydict(maps_as_pydicts="strict")
        direction = bool(json.loads(metadata["higher_is_better"]))
        return _items(metadata["metric"], direction, columns, facts.get("also")), facts
    except KeyError as error:
        raise ValueError(f"{directory / FILE} has no {error}; rerun this evaluation") from error
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{directory / FILE}: {error}") from error


def read_texts(directory: Path, ids: Iterable[str]) -> dict[str, ItemText]:
    """The texts of some items by id; those that an earlier version kept no text of are left out."""
    path = directory / FILE
    if not path.is_file():
        return {}
    rows = pq.read_table(path, columns=["id", *TEXTS], filters=[("id", "in", list(ids))]).to_pylist()
    texts = {row["id"]: ItemText(*(row[name] or "" for name in TEXTS)) for row in rows}
    return {name: text for name, text in texts.items() if text.prompt or text.answer or text.gold}


def _read_earlier(directory: Path) -> tuple[Items, dict[str, Any]]:
    path = directory / EARLIER
    if not path.is_file():
        raise ValueError(f"the artifact {directory} has no {FILE}; rerun the stage that writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = ("id", "hash", "numerator", "denominator")
        columns = {name: [item[name] for item in content["items"]] for name in names}
        items = _items(str(content["metric"]), bool(content["higher_is_better"]), columns)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); rerun this evaluation") from error
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; rerun this evaluation") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return items, {key: content[key] for key in ("diagnosis",) if key in content}


def _items(metric: str, higher_is_better: bool, columns: Mapping[str, list[Any]], also: Any = None) -> Items:
    return Items(
        metric=metric,
        higher_is_better=higher_is_better,
        ids=tuple(map(str, columns["id"])),
        hashes=tuple(map(str, columns["hash"])),
        numerators=np.array(columns["numerator"], dtype=np.float64),
        denominators=np.array(columns["denominator"], dtype=np.float64),
        categories=tuple(columns.get("category") or ()),
        parts=_parts(columns.get("parts") or []),
        also={str(name): float(value) for name, value in (also or {}).items()},
    )


def _parts(rows: list[Mapping[str, Mapping[str, float]]]) -> dict[str, tuple[Floats, Floats]]:
    """(N,) numerators and denominators of every part; an item without the part adds nothing to it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    nothing = {"numerator": 0.0, "denominator": 0.0}
    parts = {}
    for name in names:
        pairs = [row.get(name, nothing) for row in rows]
        numerators, denominators = ([pair[key] for pair in pairs] for key in ("numerator", "denominator"))
        parts[name] = (np.array(numerators, dtype=np.float64), np.array(denominators, dtype=np.float64))
    return parts
