"""Text sources: documents out of a directory, a package archive or a hub dataset."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.data.archive import read_members
from pipeline.data.files import Listing, Locate
from pipeline.data.formats import Rejected, Row, field_value, rows_of_file

_SYMBOL = re.compile(r"[^\w\s]|\d")


@dataclass(frozen=True)
class Document:
    """One text, with an id that is unique in its source and stable between runs."""

    id: str
    text: str


class RowSource(Protocol):
    """Where rows come from, before anything is known about what they mean."""

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Every row of the source, in a fixed order."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """Files of a directory (or one file): `source` = {kind: local, path, include, exclude}."""

    source: Mapping

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Rows of every file meant, by file name. Raises ValueError if there is no such file."""
        root = locate(dict(self.source))
        names = listing(dict(self.source))
        if not names:
            raise ValueError(f"{describe(self)}: no file of {root} is meant; correct its path, include or exclude")
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

    `source` = {kind: hub, repo, revision}. With `files` (a glob inside the repository) the data files are read directly
    by the builder their suffix names, so that no loading script is needed; without, `name` picks the configuration.
    `streaming` reads rows as they arrive instead of downloading everything first. `limit` stops after so many rows.
    """

    source: Mapping
    name: str | None
    split: str
    files: str | None
    streaming: bool
    limit: int | None

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row | Rejected]:
        """Rows in the dataset's order; `locate` is not asked, the `datasets` library keeps its own cache."""
        repo = self.source["repo"]
        for number, fields in enumerate(self._load()):
            if number == self.limit:
                break
            yield Row(f"{repo}#{number}", fields)

    def _load(self):  # type: ignore[no-untyped-def]  # datasets returns one of four classes
        import datasets

        repo, revision = self.source["repo"], self.source["revision"]
        if self.files is None:
            return datasets.load_dataset(repo, self.name, split=self.split, revision=revision, streaming=self.streaming)
        root = repo if Path(repo).is_dir() else f"hf://datasets/{repo}@{revision}"
        return datasets.load_dataset(
            _builder(self.files),
            data_files={self.split: f"{root}/{self.files}"},
            split=self.split,
            streaming=self.streaming,
        )


def _builder(files: str) -> str:
    for marker, builder in ((".parquet", "parquet"), (".arrow", "arrow"), (".json", "json"), (".txt", "text")):
        if marker in files:
            return builder
    raise ValueError(f"files={files!r} does not show its format; it must hold .parquet, .arrow, .json(l) or .txt")


@dataclass(frozen=True)
class Text:
    """A source of documents: rows, the column that holds the text, and what makes a document unfit.

    weight: multiplies the source's own tokens in the mixture. text_field: column (dotted path into objects; plain files
    have `text`). boundary: regular expression (multi-line) at whose matches a text is cut into documents, each starting
    with its match. max_symbol_fraction: a document is left out if digits and punctuation are more than this fraction of
    its non-blank characters (tables of numbers are not prose or programs); null keeps all.
    """

    origin: RowSource
    weight: float
    text_field: str
    boundary: str | None
    max_symbol_fraction: float | None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} of a source must be positive; leave the source out instead")
        if self.boundary is not None:
            re.compile(self.boundary)

    def read(self, locate: Locate, listing: Listing) -> Iterator[Document | Rejected]:
        """Every document and every row that is none, in a fixed order."""
        for row in self.origin.rows(locate, listing):
            if isinstance(row, Rejected):
                yield row
                continue
            for document in self._cut(row):
                yield self._judge(document)

    def documents(self, locate: Locate, listing: Listing, rejected: Counter[str] | None = None) -> Iterator[Document]:
        """The documents alone; the others are counted by reason in `rejected`. Raises ValueError if there are none."""
        found = False
        for item in self.read(locate, listing):
            if isinstance(item, Document):
                found = True
                yield item
            elif rejected is not None:
                rejected[item.reason] += 1
        if not found:
            raise ValueError(f"{describe(self.origin)} gives no document")

    def _cut(self, row: Row) -> Iterator[Document]:
        try:
            value = field_value(row.fields, self.text_field)
        except KeyError as error:
            raise ValueError(f"{describe(self.origin)}, row {row.id}: {error.args[0]}") from error
        text = value if isinstance(value, str) else ""
        if self.boundary is None:
            yield Document(row.id, text)
            return
        starts = [match.start() for match in re.finditer(self.boundary, text, re.M)]
        for number, (start, stop) in enumerate(zip([0, *starts], [*starts, len(text)], strict=True)):
            # What stands before the first boundary is a document only if it says something.
            if number or text[start:stop].strip():
                yield Document(f"{row.id}/{number}", text[start:stop])

    def _judge(self, document: Document) -> Document | Rejected:
        if not document.text.strip():
            return Rejected(document.id, "empty")
        if "\0" in document.text:
            return Rejected(document.id, "holds a NUL byte")
        if self.max_symbol_fraction is not None and symbol_fraction(document.text) > self.max_symbol_fraction:
            return Rejected(document.id, "mostly digits and punctuation")
        return document


def symbol_fraction(text: str) -> float:
    """Digits and punctuation as a fraction of all characters that are not white space; 0 for blank text."""
    visible = sum(map(len, text.split()))
    return len(_SYMBOL.findall(text)) / visible if visible else 0.0


def describe(origin: RowSource) -> str:
    """A short name of where rows come from, for messages."""
    source = getattr(origin, "source", {})
    parts = [str(source[key]) for key in ("name", "version", "repo", "path") if key in source]
    return f"{type(origin).__name__}({' '.join(parts) or source})"
