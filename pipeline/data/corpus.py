"""Gather the documents of all sources, hold some out, and say what was found: what text and chats have in common."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from pipeline.data.files import Listing, Locate
from pipeline.data.formats import Rejected
from pipeline.data.split import HeldOut, Split, split_documents
from pipeline.data.spool import Spool

MANIFEST = "sources.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
Progress = Callable[..., None]


@dataclass(frozen=True)
class Place:
    """What preparing needs from outside: where sources lie, where to write, whom to tell (`progress(note=...)`)."""

    locate: Locate
    listing: Listing
    directory: Path
    progress: Progress


def check_sources(sources: Mapping[str, Any]) -> None:
    """Raise ValueError if there is no source or a name cannot be part of a file name."""
    if not sources:
        raise ValueError("data.sources is empty; give at least one source")
    for name in sources:
        if not _NAME.fullmatch(name):
            raise ValueError(f"source name {name!r} must be letters, digits, - and _ only, as it names files")


@dataclass
class Corpus(Sequence[str]):
    """The documents of all sources in order, as text, on disk. `owners[i]` is the source of document i, by index."""

    spool: Spool
    names: list[str]
    ids: list[str] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    rejected: list[Counter[str]] = field(default_factory=list)

    def add(self, name: str, items: Iterable[tuple[str, tuple[bytes, ...]] | Rejected]) -> None:
        """Append a source's documents as (id, parts), the first part being the text that tells near-duplicates apart.

        Raises ValueError naming the source if it has none, or if an id occurs twice.
        """
        self.rejected.append(Counter())
        own: set[str] = set()
        for item in items:
            if isinstance(item, Rejected):
                self.rejected[-1][item.reason] += 1
                continue
            identity, parts = item
            if identity in own:
                raise ValueError(f"source {name!r}: two documents have the id {identity!r}")
            own.add(identity)
            self.spool.append(*parts)
            self.ids.append(identity)
            self.owners.append(len(self.rejected) - 1)
        if not own:
            found = f"; rejected: {dict(self.rejected[-1])}" if self.rejected[-1] else ""
            raise ValueError(f"source {name!r} is empty: it gives no usable document{found}")

    def __len__(self) -> int:
        return len(self.spool)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.spool.part(index, 0).decode()

    def split(self, held_out: HeldOut) -> Split:
        """Hold documents out of every source; nothing crosses, also not between sources."""
        return split_documents(self, np.array(self.owners), self.names, held_out)

    def of(self, source: int, split: Split, held_out: bool) -> list[int]:
        """Indices of a source's documents on one side, in order."""
        own = np.array(self.owners) == source
        return np.flatnonzero(own & (split.held_out == held_out)).tolist()


def write_held_out(path: Path, lines: Iterable[str]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(line + "\n" for line in lines)


def write_ids(directory: Path, name: str, ids: Iterable[str]) -> None:
    """Write the ids of a source's training documents, in the order of its tokens, one JSON string a line."""
    write_held_out(directory / f"{name}.ids.jsonl", (json.dumps(identity, ensure_ascii=False) for identity in ids))


def finish(
    place: Place, kind: str, tokenizer: Any, sources: dict[str, dict], split: Split, extra: dict
) -> dict[str, Any]:
    """Write `sources.json`, which says everything about the artifact, and return the stage's metrics."""
    summary = {
        "kind": kind,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        **extra,
        "sources": sources,
        "split": {
            "clusters": split.num_clusters,
            "near_duplicates": split.num_near_duplicates,
            "highest_similarity": round(split.highest_similarity, 4),
            "held_out_coverage": round(split.coverage, 4),
        },
    }
    (place.directory / MANIFEST).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    totals = {key: sum(source[key] for source in sources.values()) for key in ("documents", "tokens", "bytes")}
    return {**totals, **summary["split"], "sources": sources}


def read_sources(directory: Path) -> dict[str, Any]:
    """The `sources.json` of a data artifact: kind, vocab_size, eos_token_id, sources by name, split."""
    return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
