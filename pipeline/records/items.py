"""The items of an evaluation: as they are scored, and on disk as one Parquet file that any table reader opens.

One row per item. Columns: id, hash, category, prompt, answer, gold (text), numerator, denominator (float64), `parts`,
a map from a part's name to its numerator and denominator, and gold_bits, gold_bytes, gold_margin_bits (float64 or null,
see `GoldLoss`). The metadata of the schema has what holds for all items: `metric`, `higher_is_better`, `facts` (JSON).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.records.diagnosis import Diagnosis
from pipeline.records.gold import BITS_PER_BYTE, GOLD_COLUMNS, MARGIN, Floats, GoldLoss, gold_columns, gold_numbers

Names = tuple[str, ...]
ITEMS_FILE, EARLIER_FILE = "items.parquet", "items.json"
KEYS = ("id", "hash", "category")
TEXTS = ("prompt", "answer", "gold")
NUMBERS = ("numerator", "denominator")
ACCURACIES = ("acc", "acc_norm", "exact_match")
"""Metrics that are shares whatever their items weigh: of a mean over subjects an item weighs less in a large one."""
KL_NATS, NUM_WRITTEN = "kl_nats", "num_written_tokens"
"""Metrics of a drift, and of items that are texts to read: those are shown, and neither scored nor compared."""


@dataclass(frozen=True)
class Item:
    """One scored unit.

    Attributes:
        id, hash: its name, and a hash of the content that was scored: equal ids cannot hide unequal items.
        numerator, denominator: what it adds to the score.
        category: the part of the benchmark that it belongs to, or nothing.
        prompt, answer, gold: what the model was given, what it answered and what is right, for people to read.
        parts: further ratios by name, (numerator, denominator) each: a turn of several, a range of positions.
        gold_loss: how likely the model finds the right answer, where one can be scored.
    """

    id: str
    hash: str
    numerator: float
    denominator: float
    category: str = ""
    prompt: str = ""
    answer: str = ""
    gold: str = ""
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    gold_loss: GoldLoss | None = None


@dataclass(frozen=True)
class Outcome:
    """The items of one model on one benchmark. Raises ValueError if there are none, an id occurs twice or an item's
    number is not finite.

    `notes` are sentences that must be read with the score, such as how many answers could not be judged. `also` holds
    further numbers over the same items, by name, that are no ratio of sums, such as a macro-F1. `diagnosis` is that of
    an evaluation which looks into a model. `lacks_gold`: right answers have a loss, but this model's could not be had.
    """

    metric: str
    higher_is_better: bool
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    also: Mapping[str, float] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None
    lacks_gold: bool = False

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"{self.metric}: no item was scored; a score needs at least one")
        _check_unique(self.metric, [item.id for item in self.items])
        broken = [item for item in self.items if not math.isfinite(item.numerator + item.denominator)]
        if broken:
            raise ValueError(
                f"{self.metric}: {len(broken)} of {len(self.items)} items have no finite score ({broken[0].id}: "
                f"{broken[0].numerator} / {broken[0].denominator}); the model computes NaN or infinity on them"
            )

    def facts(self) -> dict[str, Any]:
        """What is kept beside the items, as plain data."""
        diagnosis = self.diagnosis and self.diagnosis.to_json()
        found: dict[str, Any] = {"notes": list(self.notes), "also": dict(self.also), "diagnosis": diagnosis}
        found["lacks_gold"] = self.lacks_gold
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class Items:
    """One model's answers to one benchmark, as columns for statistics.

    Attributes:
        metric: its name, such as `acc_norm` or `bits_per_byte`.
        higher_is_better: the direction of the metric.
        ids, hashes: (N,) names of the items and hashes of their content.
        numerators, denominators: (N,) float64.
        categories: (N,) the part of the benchmark that each item belongs to, or none at all.
        parts: further ratios by name, (N,) numerators and denominators each.
        also, notes, diagnosis, lacks_gold: see `Outcome`.
        gold: the losses of the right answers, in bits per byte, of the items that have one: a measure of its own.
    """

    metric: str
    higher_is_better: bool
    ids: tuple[str, ...]
    hashes: tuple[str, ...]
    numerators: Floats = field(repr=False)
    denominators: Floats = field(repr=False)
    categories: tuple[str, ...] = field(default=(), repr=False)
    parts: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict, repr=False)
    also: Mapping[str, float] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    diagnosis: Diagnosis | None = field(default=None, repr=False)
    lacks_gold: bool = False
    gold: Items | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError(f"{self.metric}: found no items; a score needs at least one")
        lengths = {len(self.ids), len(self.hashes), self.numerators.size, self.denominators.size}
        if len(lengths) != 1:
            raise ValueError(f"{self.metric}: ids, hashes, numerators and denominators have lengths {sorted(lengths)}")
        _check_unique(self.metric, self.ids)
        if not (np.isfinite(self.numerators).all() and np.isfinite(self.denominators).all()):
            raise ValueError(f"{self.metric}: an item's numerator or denominator is not a finite number")
        if (self.denominators < 0).any() or self.denominators.sum() <= 0:
            raise ValueError(f"{self.metric}: denominators must not be negative and must have a positive sum")

    def of(self, category: str) -> Items:
        """The items of one category, without parts and further numbers."""
        kept = [i for i, name in enumerate(self.categories) if name == category]
        ids, hashes = _taken(kept, self.ids, self.hashes)
        return Items(self.metric, self.higher_is_better, ids, hashes, self.numerators[kept], self.denominators[kept])

    @property
    def is_share(self) -> bool:
        """Whether the score is a mean of values in [0, 1], such as an accuracy: shown in percent."""
        alike = self.metric in ACCURACIES or bool((self.denominators == 1).all())
        within = (self.numerators >= 0).all() and (self.numerators <= self.denominators).all()
        return self.higher_is_better and alike and bool(within)

    @property
    def is_hit_or_miss(self) -> bool:
        """Whether the score is a share of items that are each wholly right or wholly wrong."""
        return self.is_share and bool(((self.numerators == 0) | (self.numerators == self.denominators)).all())


@dataclass(frozen=True)
class ItemText:
    """What people read of one item."""

    prompt: str
    answer: str
    gold: str


def write_items(outcome: Outcome, directory: Path) -> Path:
    """Write `items.parquet` into a directory; returns its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, path = outcome.items, directory / ITEMS_FILE
    columns: dict[str, Any] = {name: [_encodable(getattr(item, name)) for item in rows] for name in (*KEYS, *TEXTS)}
    columns |= {name: [float(getattr(item, name)) for item in rows] for name in NUMBERS}
    columns |= gold_columns(item.gold_loss for item in rows)
    columns["parts"] = [[(_encodable(name), _pair(part)) for name, part in item.parts.items()] for item in rows]
    metadata = {
        "metric": outcome.metric,
        "higher_is_better": json.dumps(outcome.higher_is_better),
        "facts": json.dumps(outcome.facts()),
    }
    pq.write_table(pa.table(columns, schema=_schema().with_metadata(metadata)), path, compression="zstd")
    return path


def read_items(directory: Path) -> Items:
    """The items of an evaluation artifact: of `items.parquet`, or the `items.json` of earlier versions.

    Raises ValueError, naming the directory, if there are none or they are not what they should be.
    """
    import pyarrow as pa

    found = (directory / name for name in (ITEMS_FILE, EARLIER_FILE))
    path = next((file for file in found if file.is_file()), None)
    if path is None:
        raise ValueError(f"the artifact {directory} has no {ITEMS_FILE}; rerun the stage that writes it")
    try:
        return _read_earlier(path) if path.name == EARLIER_FILE else _read_table(path)
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; rerun this evaluation") from error
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; rerun this evaluation") from error


def read_texts(directory: Path, ids: Iterable[str]) -> dict[str, ItemText]:
    """The texts of some items by id; those that an earlier version kept no text of are left out."""
    import pyarrow.parquet as pq

    path = directory / ITEMS_FILE
    if not path.is_file():
        return {}
    rows = pq.read_table(path, columns=["id", *TEXTS], filters=[("id", "in", list(ids))]).to_pylist()
    texts = {row["id"]: ItemText(*(row[name] or "" for name in TEXTS)) for row in rows}
    return {name: text for name, text in texts.items() if text.prompt or text.answer or text.gold}


def _check_unique(metric: str, ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"{metric}: the item id {twice!r} occurs more than once; ids must be unique")


def _read_table(path: Path) -> Items:
    import pyarrow.parquet as pq

    known = [*KEYS, *NUMBERS, "parts", *(name for name in GOLD_COLUMNS if name in pq.read_schema(path).names)]
    table = pq.read_table(path, columns=known)
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    facts, direction = json.loads(metadata["facts"]), json.loads(metadata["higher_is_better"])
    return _items(metadata["metric"], direction, table.to_pydict(maps_as_pydicts="strict"), facts)


def _read_earlier(path: Path) -> Items:
    content = json.loads(path.read_text(encoding="utf-8"))
    columns = {name: [item[name] for item in content["items"]] for name in ("id", "hash", *NUMBERS)}
    facts = {"diagnosis": content.get("diagnosis")}
    return _items(str(content["metric"]), content["higher_is_better"], columns, facts)


def _items(metric: str, higher_is_better: Any, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> Items:
    diagnosis = facts.get("diagnosis")
    ids, hashes = (tuple(map(str, columns[name])) for name in ("id", "hash"))
    return Items(
        metric=metric,
        higher_is_better=bool(higher_is_better),
        ids=ids,
        hashes=hashes,
        numerators=np.array(columns["numerator"], dtype=np.float64),
        denominators=np.array(columns["denominator"], dtype=np.float64),
        categories=tuple(columns.get("category") or ()),
        parts=_parts(columns.get("parts") or []),
        also={str(name): float(value) for name, value in facts.get("also", {}).items()},
        notes=tuple(map(str, facts.get("notes", ()))),
        diagnosis=None if diagnosis is None else Diagnosis.from_json(diagnosis),
        lacks_gold=bool(facts.get("lacks_gold")),
        gold=_gold(ids, hashes, columns),
    )


def _gold(ids: Names, hashes: Names, columns: Mapping[str, list[Any]]) -> Items | None:
    """The losses of the right answers, weighed as the items are, with the margin as a part; None if no item has one."""
    losses, margins = gold_numbers(columns, len(ids))
    if not (kept := np.flatnonzero(~np.isnan(losses))).size:
        return None
    weights = np.array(columns["denominator"], dtype=np.float64)[kept]
    has_margin = ~np.isnan(margins[kept])
    margin = np.where(has_margin, margins[kept] * weights, 0.0), np.where(has_margin, weights, 0.0)
    ids, hashes = _taken(kept, ids, hashes)
    parts = {MARGIN: margin} if has_margin.any() else {}
    return Items(BITS_PER_BYTE, False, ids, hashes, losses[kept] * weights, weights, parts=parts)


def _taken(places: Iterable[int], ids: Names, hashes: Names) -> tuple[Names, Names]:
    pairs = [(ids[place], hashes[place]) for place in places]
    return tuple(name for name, _ in pairs), tuple(digest for _, digest in pairs)


def _parts(rows: list[Mapping[str, Mapping[str, float]]]) -> dict[str, tuple[Floats, Floats]]:
    """(N,) numerators and denominators of every part; an item without the part adds nothing to it."""
    nothing = dict.fromkeys(NUMBERS, 0.0)
    parts = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        pairs = [row.get(name, nothing) for row in rows]
        numerators, denominators = (np.array([pair[key] for pair in pairs], dtype=np.float64) for key in NUMBERS)
        parts[name] = (numerators, denominators)
    return parts


def _schema() -> Any:
    import pyarrow as pa

    numbers, gold = ([(name, pa.float64()) for name in names] for names in (NUMBERS, GOLD_COLUMNS))
    texts = [(name, pa.string()) for name in (*KEYS, *TEXTS)]
    return pa.schema([*texts, *numbers, ("parts", pa.map_(pa.string(), pa.struct(numbers))), *gold])


def _pair(part: tuple[float, float]) -> dict[str, float]:
    return dict(zip(NUMBERS, map(float, part), strict=True))


def _encodable(text: str) -> str:
    # A model may emit half of a surrogate pair, which no UTF-8 file can hold.
    return text.encode("utf-8", "replace").decode()
