"""What a benchmark is: items with a numerator and a denominator each, and the score over them.

Every benchmark here is a ratio estimator, sum(numerator) / sum(denominator): an accuracy has denominator 1, bits per
byte have bits over bytes. Keeping the items, not only the score, is what lets two models be compared item by item.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipeline.data.sources.files import Listing, Locate

HASH_LENGTH = 16


@dataclass(frozen=True)
class Item:
    """One scored unit.

    Attributes:
        id, hash: its name, and a hash of the content that was scored: equal ids cannot hide unequal items.
        numerator, denominator: what it adds to the score.
        category: the part of the benchmark that it belongs to, or nothing.
        prompt, answer, gold: what the model was given, what it answered and what is right, for people to read.
        parts: further ratios by name, (numerator, denominator) each: a turn of several, a range of positions.
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


class Score(NamedTuple):
    """A value, its standard error over items (nan for a single item), and the number of items."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Outcome:
    """The items of one model on one benchmark. Raises ValueError if there are none, an id occurs twice or an item's
    number is not finite.

    `notes` are sentences that must be read with the score, such as how many answers could not be judged. `also` holds
    further numbers over the same items, by name, that are no ratio of sums, such as a macro-F1.
    """

    metric: str
    higher_is_better: bool
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    also: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"{self.metric}: no item was scored; a score needs at least one")
        ids = [item.id for item in self.items]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"{self.metric}: the item id {twice!r} occurs twice; ids must be unique")
        broken = [item for item in self.items if not math.isfinite(item.numerator + item.denominator)]
        if broken:
            raise ValueError(
                f"{self.metric}: {len(broken)} of {len(self.items)} items have no finite score ({broken[0].id}: "
                f"{broken[0].numerator} / {broken[0].denominator}); the model computes NaN or infinity on them"
            )

    def facts(self) -> dict[str, Any]:
        """What is kept beside the items, as plain data."""
        found = {"notes": list(self.notes), "also": dict(self.also)}
        return {name: value for name, value in found.items() if value}


class Ran(Protocol):
    """What a program did: whether it ran to its end without an error, and what it wrote."""

    @property
    def ok(self) -> bool: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


RunProgram = Callable[[str], Ran]
"""Runs a Python program where it can do no harm. A program that crashes or never ends is an answer, not an error."""


def _no_progress(**fields: Any) -> None:
    return None


@dataclass(frozen=True)
class Workspace:
    """What a benchmark may read besides the model.

    Attributes:
        locate: turns a source mapping {kind: package | local, ...} into a path on disk.
        listing: turns a local source mapping into the names of the files it means.
        data: a data artifact, for benchmarks on held-out documents.
        progress: called with step, total and note.
        isolation: how far programs that a model wrote must be shut in (`pipeline.evaluation.sandbox.LEVELS`).
        workers: such programs at once; None is as many as there are cores.
        reference: the directory of a second model that this one is set against.
        samples: what that model wrote (`pipeline.evaluation.text.base_samples`).
        directory: where a benchmark may keep what it must not lose when it is interrupted; found again by the next
            attempt, and kept beside the items.
        endpoint: how a service is reached that the benchmark asks (`pipeline.evaluation.remote.endpoint`).
    """

    locate: Locate
    listing: Listing
    data: Path | None = None
    progress: Callable[..., None] = _no_progress
    isolation: str = "full"
    workers: int | None = None
    reference: Path | None = None
    samples: Path | None = None
    directory: Path | None = None
    endpoint: Mapping[str, Any] | None = None


class Benchmark(Protocol):
    """A frozen dataclass named by `_target_`; its fields are the keys of one file of conf/benchmark.

    One that cannot do without `reference` or `samples` of its workspace names them in `needs`.
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
    n, total = len(items), math.fsum(item.denominator for item in items)
    if not n or total <= 0:
        raise ValueError(f"found {n} items whose denominators sum to {total}; a score needs a positive sum")
    value = math.fsum(item.numerator for item in items) / total
    if n == 1:
        return Score(value, math.nan, 1)
    squares = math.fsum((item.numerator - value * item.denominator) ** 2 for item in items)
    return Score(value, math.sqrt(n / (n - 1) * squares) / total, n)


def content_hash(*parts: object) -> str:
    """First 16 hex digits of the sha256 of the parts' JSON text: the identity of an item's content."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_LENGTH]


def num_rows(model: Any) -> int:
    """Rows of a loaded model's token embedding."""
    return int(model.get_input_embeddings().weight.shape[0])
