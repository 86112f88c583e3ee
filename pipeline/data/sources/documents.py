"""Text sources: documents out of a directory, a package archive or a hub dataset."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from pipeline.data.sources.archive import read_members
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.formats import rows_of_file
from pipeline.data.sources.hub import Repository, check_format
from pipeline.data.sources.rows import Rejected, Row, Unused, escaped, field_value, unused
from pipeline.ranges import COUNT, SHARE, Range, check_ranges

_SYMBOL = re.compile(r"[^\w\s]|\d")
_SPACE = re.compile(r"\s+")
_PART = 1 << 20
LONGEST_RUN = 1_000_000
"""More characters than this without white space are encoded data, not text; a tokenizer would take them as one word."""


@dataclass(frozen=True)
class Document:
    """One text, with an id that is unique in its source and stable between runs."""

    id: str
    text: str


class RowSource(Protocol):
    """Where rows come from, before anything is known about what they mean."""

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Every row of the source, in a fixed order."""


@dataclass(frozen=True)
class LocalFiles:
    """Files of a directory (or one file): `source` = {kind: local, path, include, exclude}."""

    source: Mapping

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Rows of every file meant, by file name. Raises ValueError if there is no such file."""
        root = locate(dict(self.source))
        names = listing(dict(self.source))
        if not names:
            raise ValueError(f"{describe(self)}: no file under {root} matches; correct its path, include or exclude")
        for name in names:
            with (root if root.is_file() else root / name).open("rb") as stream:
                yield from rows_of_file(name, stream)


@dataclass(frozen=True)
class PackageFiles:
    """Members of a pinned package archive, read and never run.

    `source` = {kind: package, name, version, filename, sha256}; `include` and `exclude` are globs over member names.
    """

    source: Mapping
    include: Sequence[str]
    exclude: Sequence[str]

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Rows of every member meant, by name. Raises ValueError if none matches or the archive is unsafe."""
        for name, data in read_members(locate(dict(self.source)), self.include, self.exclude):
            yield from rows_of_file(name, io.BytesIO(data))


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub.

    `source` = {kind: hub, repo, revision}; the revision should be a commit, which is then the data's identity. With
    `files` (a glob inside the repository) the data files are read directly, damaged rows and all, so that no loading
    script is needed; without, the `datasets` library loads the configuration `name`. `streaming` reads rows as they
    arrive instead of downloading everything first. `limit`: rows to read at most.
    """

    source: Mapping
    name: str | None
    split: str
    files: str | None
    streaming: bool
    limit: int | None

    def __post_init__(self) -> None:
        check_ranges(vars(self), {"limit": COUNT})
        if self.files is not None:
            check_format(self.files)

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Rows in the dataset's order; `locate` is not asked, the hub's own cache is used.

        Raises HubError if the hub cannot be reached.
        """
        place = Repository(self.source["repo"], self.source["revision"])
        if self.files is None:
            found = place.load(self.name, self.split, self.streaming)
        else:
            found = place.read(self.files, self.streaming)
        return islice(found, self.limit)


@dataclass(frozen=True)
class WeightedRows:
    """What the sources of a mixture have in common. weight: multiplies the source's own tokens in the mixture."""

    origin: RowSource
    weight: float

    def __post_init__(self) -> None:
        check_ranges(vars(self), {"weight": Range(0, least_open=True, hint="or leave the source out")})


@dataclass(frozen=True)
class Text(WeightedRows):
    """A source of documents: rows, the column that holds the text, and what makes a document unfit.

    text_field: column (dotted path into objects; plain files have `text`). boundary: regular expression (multi-line) at
    whose matches a text is cut into documents, each starting with its match. max_symbol_fraction: a document is left
    out if digits and punctuation are more than this fraction of its non-blank characters (tables of numbers are not
    prose or programs); null keeps all.
    """

    text_field: str
    boundary: str | None
    max_symbol_fraction: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(vars(self), {"max_symbol_fraction": SHARE})
        if self.boundary is not None:
            re.compile(self.boundary)

    def read(self, locate: Locate, listing: Listing) -> Iterator[Document | Rejected | Unused]:
        """Every document, the columns of its row that are not used, and every row that is none, in a fixed order."""
        for row in self.origin.rows(locate, listing):
            if isinstance(row, Rejected):
                yield row
                continue
            found = [self._judge(document) for document in self._cut(row)]
            yield from found
            if any(isinstance(item, Document) for item in found):
                yield from unused(row, (self.text_field,))

    def documents(self, locate: Locate, listing: Listing) -> Iterator[Document]:
        """The documents alone. Raises ValueError if there are none."""
        found, first = False, ""
        for item in self.read(locate, listing):
            if isinstance(item, Document):
                found = True
                yield item
            elif isinstance(item, Rejected):
                first = first or f": the first row is not a document ({item.reason}; {item.detail or item.id})"
        if not found:
            raise ValueError(f"{describe(self.origin)} gives no document{first}")

    def _cut(self, row: Row) -> Iterator[Document | Rejected]:
        try:
            value = field_value(row.fields, self.text_field)
        except KeyError as error:
            remedy = f"text_field{_text_column(row.fields)}"
            yield Rejected(row.id, f"no column {self.text_field!r}", error.args[0], remedy=remedy)
            return
        if value is not None and not isinstance(value, str):
            yield Rejected(row.id, f"column {self.text_field!r} is not text", f"a value of type {type(value).__name__}")
            return
        text = value or ""
        if self.boundary is None:
            yield Document(row.id, text)
            return
        starts = [match.start() for match in re.finditer(self.boundary, text, re.M)]
        for number, (start, stop) in enumerate(zip([0, *starts], [*starts, len(text)], strict=True)):
            # What stands before the first boundary is a document only if it says something.
            if number or text[start:stop].strip():
                yield Document(f"{row.id}/{number}", text[start:stop])

    def _judge(self, document: Document | Rejected) -> Document | Rejected:
        if isinstance(document, Rejected):
            return document
        if not document.text or document.text.isspace():
            return Rejected(document.id, "empty")
        if "\0" in document.text:
            return Rejected(document.id, "holds a NUL byte")
        if len(document.text) > LONGEST_RUN and (length := longest_run(document.text)) > LONGEST_RUN:
            return Rejected(document.id, "one run of characters without white space", f"{length:,} characters")
        if self.max_symbol_fraction is not None and symbol_fraction(document.text) > self.max_symbol_fraction:
            return Rejected(document.id, "mostly digits and punctuation", by_rule=True)
        return document


def _text_column(fields: Mapping) -> str:
    """How `text_field` is set to the column of these that holds the longest text, or to one that does."""
    texts = {key: value for key, value in fields.items() if isinstance(value, str) and key}
    if not texts:
        return " to a column of text"
    longest = max(texts, key=lambda key: len(texts[key]))
    return f"={longest}" if len(texts) == 1 else f" to the column of the text, such as {longest}"


def symbol_fraction(text: str) -> float:
    """Digits and punctuation as a fraction of all characters that are not white space; 0 for blank text."""
    # In parts, as each makes a list of its matches.
    parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
    visible = sum(sum(map(len, part.split())) for part in parts)
    return sum(len(_SYMBOL.findall(part)) for part in parts) / visible if visible else 0.0


def longest_run(text: str) -> int:
    """Characters of the longest stretch without white space."""
    longest = last = 0
    for match in _SPACE.finditer(text):
        longest, last = max(longest, match.start() - last), match.end()
    return max(longest, len(text) - last)


def describe(origin: RowSource) -> str:
    """A short name of where rows come from, for messages."""
    source = getattr(origin, "source", {})
    parts = [str(source[key]) for key in ("name", "version", "repo", "path") if key in source]
    return escaped(f"{type(origin).__name__}({' '.join(parts) or source})")
