"""What a benchmark is: items with a numerator and a denominator each, and the score over them.

Every benchmark here is a ratio estimator, sum(numerator) / sum(denominator): an accuracy has denominator 1, bits per
byte have bits over bytes. Keeping the items, not only the score, is what lets two models be compared item by item.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipeline.data.sources.documents import RowSource
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Row
from pipeline.records.items import Item, Outcome

HASH_LENGTH = 16
GOLD, GOLD_MARGIN = "gold_bits_per_byte", "gold_margin_bits_per_byte"


class Score(NamedTuple):
    """A value, its standard error over items (nan for a single item), and the number of items."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Workspace:
    """What a benchmark may read besides the model.

    Attributes:
        locate: turns a source mapping {kind: package | local, ...} into a path on disk.
        listing: turns a local source mapping into the names of the files it means.
        data: a data artifact, for benchmarks on held-out documents.
        progress: called with step, total and note.
        isolation: how far programs that a model wrote must be shut in (`pipeline.evaluation.sandbox.LEVELS`).
        workers: such programs that run in parallel; None: one per core.
        reference: the directory of a second model that this one is set against.
        samples: what that model wrote (`pipeline.evaluation.text.base_samples`).
        directory: where a benchmark may keep what it must not lose when it is interrupted; found again by the next
            attempt, and kept beside the items.
        endpoint: how a service is reached that the benchmark asks (`pipeline.evaluation.remote.endpoint`).
    """

    locate: Locate
    listing: Listing
    data: Path | None = None
    progress: Callable[..., None] = lambda **_: None
    isolation: str = "full"
    workers: int | None = None
    reference: Path | None = None
    samples: Path | None = None
    directory: Path | None = None
    endpoint: Mapping[str, Any] | None = None

    def kept(self, name: str) -> Path:
        """Where a file lies that the next attempt finds again. Raises ValueError if there is no such place."""
        if self.directory is None:
            raise ValueError(f"this benchmark needs a directory to keep {name} in")
        return self.directory / name


class Benchmark(Protocol):
    """A frozen dataclass named by `_target_`; its fields are the keys of one file of conf/benchmark.

    One that cannot do without `reference` or `samples` of its workspace names them in `needs`; one whose items may
    have a `gold_loss` has `scores_gold`; one whose result depends on more than what the model computes has
    `looks_inside`.
    """

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """Score a loaded fp32 causal language model."""
        ...


def score(items: Sequence[Item]) -> Score:
    """sum(numerator) / sum(denominator) with its linearised standard error over items.

    With r the ratio and e_i = numerator_i - r * denominator_i, the error is sqrt(n/(n-1) * sum e_i^2) divided by
    sum(denominator) (Cochran 1977, "Sampling Techniques", section 2.11, without the finite population correction). For
    denominators of 1 this is the sample standard error of a mean, the one lm-evaluation-harness prints.
    """
    return _ratio([(item.numerator, item.denominator) for item in items])


def _ratio(pairs: Sequence[tuple[float, float]]) -> Score:
    n, total = len(pairs), math.fsum(denominator for _, denominator in pairs)
    if not n or total <= 0:
        raise ValueError(f"found {n} items whose denominators sum to {total}; a score needs a positive sum")
    value = math.fsum(numerator for numerator, _ in pairs) / total
    if n == 1:
        return Score(value, math.nan, 1)
    squares = math.fsum((numerator - value * denominator) ** 2 for numerator, denominator in pairs)
    return Score(value, math.sqrt(n / (n - 1) * squares) / total, n)


def gold_scores(outcome: Outcome) -> dict[str, float | None]:
    """The right answers' loss in bits per byte and margin to the best wrong option, by their names in a manifest.

    Means over the items that have them, weighed as in the score. Empty where no right answer has a loss; None where the
    model's could not be had.
    """
    losses = [(item.gold_loss, item.denominator) for item in outcome.items if item.gold_loss]
    margins = [(loss.margin_bits_per_byte, weight) for loss, weight in losses]
    named = {
        GOLD: [(loss.bits_per_byte * weight, weight) for loss, weight in losses],
        GOLD_MARGIN: [(margin * weight, weight) for margin, weight in margins if margin is not None],
    }
    found: dict[str, float | None] = {GOLD: None, f"{GOLD}_stderr": None} if outcome.lacks_gold else {}
    for name, pairs in named.items():
        if pairs:
            value, stderr, _ = _ratio(pairs)
            found |= {name: value, f"{name}_stderr": stderr if math.isfinite(stderr) else None}
    return found


def content_hash(*parts: object) -> str:
    """First 16 hex digits of the sha256 of the parts' JSON text: the identity of an item's content."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_LENGTH]


def smallest_hashes(rows: Iterable[Mapping[str, Any]], limit: int | None) -> list[int]:
    """Numbers, ascending, of the `limit` rows with the smallest content hashes; of all rows if `limit` is None."""
    if limit is None:
        return [number for number, _ in enumerate(rows)]
    hashes = [(content_hash(row), number) for number, row in enumerate(rows)]
    return sorted(number for _, number in sorted(hashes)[:limit])


def every_row(source: RowSource, inputs: Workspace, name: str = "benchmark") -> list[Mapping[str, Any]]:
    """All rows of a source. Raises ValueError for one that cannot be read, with the name of the source."""
    rows = []
    for row in source.rows(inputs.locate, inputs.listing):
        if not isinstance(row, Row):
            raise ValueError(f"{name}: row {row.id} is {row.reason}; every row is needed")
        rows.append(row.fields)
    return rows


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first place where any of `stop` begins; empty ones count for nothing."""
    return text[: min((text.find(end) for end in stop if end and end in text), default=len(text))]


def num_rows(model: Any) -> int:
    """Rows of a loaded model's token embedding."""
    return int(model.get_input_embeddings().weight.shape[0])
