"""The items of an evaluation on disk: one Parquet file, one row per item, that any table reader opens.

Columns: id, hash, category, prompt, answer, gold (text), numerator, denominator (float64), and `parts`, a map from a
part's name to its numerator and denominator. What holds for all items (`metric`, `higher_is_better`, and `facts` as
JSON) is in the metadata of the schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.evaluation.base import Item, Outcome

FILE = "items.parquet"
TEXTS = ("id", "hash", "category", "prompt", "answer", "gold")
NUMBERS = ("numerator", "denominator")


def write_items(outcome: Outcome, directory: Path) -> Path:
    """Write `items.parquet` into a directory; returns its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {name: [_encodable(getattr(item, name)) for item in outcome.items] for name in TEXTS}
    columns |= {name: [float(getattr(item, name)) for item in outcome.items] for name in NUMBERS}
    columns["parts"] = [
        [(_encodable(name), _pair(part)) for name, part in item.parts.items()] for item in outcome.items
    ]
    metadata = {
        "metric": outcome.metric,
        "higher_is_better": json.dumps(outcome.higher_is_better),
        "facts": json.dumps(outcome.facts()),
    }
    path = directory / FILE
    pq.write_table(pa.table(columns, schema=_schema().with_metadata(metadata)), path, compression="zstd")
    return path


def read_items(directory: Path) -> Outcome:
    """The outcome that `write_items` wrote, its facts but notes and further numbers left out."""
    import pyarrow.parquet as pq

    table = pq.read_table(directory / FILE)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    rows = table.to_pylist(maps_as_pydicts="strict")
    items = tuple(Item(**{**row, "parts": {k: tuple(v.values()) for k, v in row["parts"].items()}}) for row in rows)
    facts, direction = json.loads(metadata["facts"]), json.loads(metadata["higher_is_better"])
    return Outcome(metadata["metric"], direction, items, tuple(facts.get("notes", ())), facts.get("also", {}))


def _schema() -> Any:
    import pyarrow as pa

    pair = pa.struct([(name, pa.float64()) for name in NUMBERS])
    texts = [(name, pa.string()) for name in TEXTS]
    return pa.schema([*texts, *((name, pa.float64()) for name in NUMBERS), ("parts", pa.map_(pa.string(), pair))])


def _pair(part: tuple[float, float]) -> dict[str, float]:
    return dict(zip(NUMBERS, map(float, part), strict=True))


def _encodable(text: str) -> str:
    # A model may emit half of a surrogate pair, which no UTF-8 file can hold.
    return text.encode("utf-8", "replace").decode()
