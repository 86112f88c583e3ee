"""Training documents that hold text of an evaluation set: found by n-grams of words, left out, and listed.

As in Brown et al. 2020 (arXiv 2005.14165, appendix C): 13 words in a row, lower-cased, without punctuation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.clean.shingles import merged, ngram_hashes, word_hashes
from pipeline.data.sources.documents import RowSource, describe
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Found, Rejected, Row, field_value, strings

REASON = "overlaps an evaluation set"
_WORD = re.compile(r"(?:[0-9A-Za-z_]|[^\x00-\x7f])+")
_SNIPPET_WORDS = 8


@dataclass(frozen=True)
class EvaluationTexts:
    """An evaluation set as text: rows, and the columns (dotted paths) that must not be trained on; null takes every
    string of a row."""

    origin: RowSource
    fields: Sequence[str] | None

    def texts(self, locate: Locate, listing: Listing) -> Iterator[tuple[str, str]]:
        """(row id, text) of every row. Raises ValueError if there is none, or no such column."""
        found = False
        for row in self.origin.rows(locate, listing):
            if isinstance(row, Row):
                found = True
                yield row.id, "\n".join(strings(self._values(row)))
        if not found:
            raise ValueError(f"{describe(self.origin)} gives no row to compare with")

    def _values(self, row: Row) -> Any:
        if self.fields is None:
            return row.fields
        try:
            return [field_value(row.fields, name) for name in self.fields]
        except KeyError as error:
            raise ValueError(f"{describe(self.origin)}, row {row.id}: {error.args[0]}") from error


@dataclass(frozen=True)
class Decontamination:
    """What training documents must not hold.

    sets: evaluation sets by name. ngram: a document is left out if it has this many words in a row in common with an
    item. An item of fewer words is compared as a whole if it has at least `min_words`; a shorter one says nothing and
    is counted.
    """

    sets: Mapping[str, EvaluationTexts]
    ngram: int
    min_words: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.ngram:
            raise ValueError(f"decontaminate: min_words={self.min_words} must lie between 1 and ngram={self.ngram}")
        if not self.sets:
            raise ValueError("decontaminate.sets is empty; name the evaluation sets, or set decontaminate to null")


class Hit(NamedTuple):
    """An n-gram of a document: the evaluation set and item that have it too, and its words in the document."""

    evaluation: str
    item: str
    text: str


@dataclass
class Contamination:
    """The n-grams of all evaluation sets, and what was found to hold them."""

    wanted: Decontamination
    items: dict[str, int] = field(default_factory=dict)
    too_short: dict[str, int] = field(default_factory=dict)
    hit_items: dict[str, set[str]] = field(default_factory=dict)
    removed: Counter[str] = field(default_factory=Counter)
    lines: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names: list[tuple[str, str]] = []
        self._tables: dict[int, tuple[np.ndarray, np.ndarray, list[int]]] = {}

    def read(self, locate: Locate, listing: Listing) -> Contamination:
        """Read the evaluation sets."""
        found: dict[int, dict[int, np.ndarray]] = {}
        for name, texts in self.wanted.sets.items():
            self.items[name], self.too_short[name], self.hit_items[name] = 0, 0, set()
            for identity, text in texts.texts(locate, listing):
                self.items[name] += 1
                words = word_hashes(text)
                size = min(self.wanted.ngram, len(words))
                if size < self.wanted.min_words:
                    self.too_short[name] += 1
                    continue
                found.setdefault(size, {})[len(self._names)] = ngram_hashes(words, size)
                self._names.append((name, identity))
        self._tables = {size: (*merged([*hashes.values()]), [*hashes]) for size, hashes in found.items()}
        return self

    def find(self, text: str) -> Hit | None:
        """The first n-gram of a document that an evaluation item has too."""
        words = word_hashes(text)
        for size, (hashes, owners, items) in sorted(self._tables.items(), reverse=True):
            own = ngram_hashes(words, size)
            places = np.searchsorted(hashes, own)
            places[places == len(hashes)] = 0
            if len(common := np.flatnonzero(hashes[places] == own)):
                first = int(common[0])
                evaluation, item = self._names[items[owners[places[first]]]]
                return Hit(evaluation, item, _words(text, first, size))
        return None

    def filtered(self, source: str, items: Iterable[Found]) -> Iterator[Found]:
        """Documents (id, parts of which the first is the text) without those that overlap; these are rejected."""
        for item in items:
            hit = self.find(item[1][0].decode()) if isinstance(item, tuple) else None
            if hit is None or not isinstance(item, tuple):
                yield item
                continue
            self.removed[source] += 1
            self.hit_items[hit.evaluation].add(hit.item)
            self.lines.append({"source": source, "document": item[0], **hit._asdict()})
            yield Rejected(item[0], REASON, f"{hit.evaluation}/{hit.item}: {hit.text}", by_rule=True)

    def summary(self) -> dict[str, Any]:
        """Documents left out by source; items by evaluation set, how many were met and how many are too short."""
        sets = {
            name: {"items": self.items[name], "met": len(self.hit_items[name]), "too_short": self.too_short[name]}
            for name in self.wanted.sets
        }
        return {"ngram": self.wanted.ngram, "removed": dict(self.removed), "sets": sets}


def _words(text: str, first: int, size: int) -> str:
    """The words of a text from number `first` on, as they stand there; the middle of a long stretch is left out."""
    words = list(_WORD.finditer(text))[first : first + size]
    if size <= 2 * _SNIPPET_WORDS:
        return text[words[0].start() : words[-1].end()]
    head, tail = words[_SNIPPET_WORDS - 1].end(), words[-_SNIPPET_WORDS].start()
    return f"{text[words[0].start() : head]} ... {text[tail : words[-1].end()]}"
