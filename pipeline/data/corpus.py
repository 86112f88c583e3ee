"""Gather the documents of all sources, hold some out, and say what was found: what text and chats have in common."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.data.clean.contamination import Contamination, Decontamination
from pipeline.data.clean.split import HeldOut, Split, split_documents
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Found, Rejected, Unused, escaped
from pipeline.data.tokens.encoding import Encoding
from pipeline.data.tokens.spool import Spool
from pipeline.data.tokens.vocabulary import highest_id

MANIFEST = "sources.json"
REJECTED = "rejected.jsonl"
OVERLAP = "overlap.jsonl"
BAD_ROWS = ("skip", "refuse")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_LISTED = 100
"""Rejected rows of one reason and source that are listed; all are counted."""
_KINDS = 200
"""Reasons, and keys, of a source that are told apart; what follows is counted as others."""
_KEY_CHARS = 80
Progress = Callable[..., None]


@dataclass(frozen=True)
class Workspace:
    """What preparing needs from outside: where sources lie, where to write, whom to tell (`progress(note=...)`), how to
    tokenise, and the rows of the model's embedding; None where no model is known."""

    locate: Locate
    listing: Listing
    directory: Path
    progress: Progress
    encoding: Encoding = field(default_factory=Encoding)
    num_rows: int | None = None

    def rows(self, tokenizer: Any) -> int:
        """Rows of the embedding: one for every id of the tokenizer where no model is known."""
        return highest_id(tokenizer) + 1 if self.num_rows is None else self.num_rows


def check_sources(sources: Mapping[str, Any], bad_rows: str, *others: Mapping[str, Any]) -> None:
    """Raise ValueError if there is no source, a name cannot be part of a file name, or one is used twice."""
    if not sources:
        raise ValueError("data.sources is empty; give at least one source")
    if bad_rows not in BAD_ROWS:
        raise ValueError(f"data.bad_rows={bad_rows!r} must be skip (count and list them) or refuse (stop)")
    names = [name for group in (sources, *others) for name in group]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"source name {name!r} must be letters, digits, - and _ only, as it names files")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"data.sources and data.replay both name {', '.join(twice)}; a name stands for one source")


@dataclass
class Bad:
    """The rows of one source that are not used: `rejected` are damaged or of another form, `left_out` by a rule of the
    config; both by reason. `lines` are the first of each reason. `ignored_keys`: how often rows that are used hold a
    key that nothing reads, by its path. remedy: of the first row, see `Rejected`."""

    rejected: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    lines: list[dict[str, Any]] = field(default_factory=list)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    remedy: str = ""

    def ignore(self, unused: Unused) -> None:
        """Count the keys of a row that nothing reads."""
        for key in unused.keys:
            self.ignored_keys[_kind(self.ignored_keys, escaped(key)[:_KEY_CHARS], "(other keys)")] += 1

    def add(self, source: str, row: Rejected) -> None:
        """Count a row, and list it if it is among the first of its reason."""
        counter = self.left_out if row.by_rule else self.rejected
        self.remedy = self.remedy if self.lines else row.remedy
        reason = _kind(counter, row.reason, "other reasons")
        counter[reason] += 1
        if counter[reason] <= _LISTED:
            found = {"source": source, "id": row.id, "reason": row.reason, "detail": escaped(row.detail[:500])}
            self.lines.append({**found, "by_rule": row.by_rule})

    def check(self, name: str, num_used: int, bad_rows: str, is_whole: bool = True, key: str = "") -> None:
        """Refuse a source of that name of which no row is used, or with a bad row where these are to be refused.

        is_whole: whether all of its rows are counted, and not the first alone. key: of the source in the config; "":
        its name. Raises ValueError.
        """
        described = self.describe() + (f"; set {key or name}.{self.remedy}" if self.remedy else "")
        if bad_rows == "refuse" and self.rejected:
            of = f"{self.rejected.total() + num_used} rows"
            raise ValueError(
                f"source {name!r}: {self.rejected.total()} of {of if is_whole else f'the first {of}'} cannot be used; "
                f"{described}; correct them, or set data.bad_rows=skip to go on without them"
            )
        if is_whole and not num_used:
            found = f"; {described}" if self.lines else ""
            raise ValueError(f"source {name!r} is empty: it gives no usable document{found}")

    def describe(self) -> str:
        """Counts by reason and the first row, for a message; empty if there is none."""
        if not self.lines:
            return ""
        first = self.lines[0]
        detail = f" ({first['detail']})" if first["detail"] else ""
        counts = {**self.rejected, **self.left_out}
        return f"rejected: {counts}; the first is {first['id']!r}: {first['reason']}{detail}"


def _kind(known: Counter[str], kind: str, others: str) -> str:
    """A kind to count, which is that of all others once there are many."""
    return kind if kind in known or len(known) < _KINDS else others


@dataclass
class Corpus(Sequence[str]):
    """The documents of all sources in order, as text, on disk. `owners[i]` is the source of document i, by index.

    bad_rows: skip or refuse. bad: what was not used, by source.
    """

    spool: Spool
    names: list[str]
    bad_rows: str
    ids: list[str] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)

    def add(self, name: str, items: Iterable[Found]) -> None:
        """Append a source's documents as (id, parts), the first part being the text that tells near-duplicates apart.

        Raises ValueError naming the source if it has none, if an id occurs twice, or if a row is damaged and bad rows
        are to be refused. Keys that nothing reads are counted, and stop nothing.
        """
        bad = Bad()
        self.bad.append(bad)
        own: set[str] = set()
        for item in items:
            if isinstance(item, Rejected):
                bad.add(name, item)
                continue
            if isinstance(item, Unused):
                bad.ignore(item)
                continue
            identity, parts = item
            if identity in own:
                raise ValueError(f"source {name!r}: two documents have the id {identity!r}")
            own.add(identity)
            self.spool.append(*parts)
            self.ids.append(identity)
            self.owners.append(len(self.bad) - 1)
        bad.check(name, len(own), self.bad_rows)

    def __len__(self) -> int:
        return len(self.spool)

    def __getitem__(self, index: Any) -> Any:
        """The text of a document; only whole numbers are asked for."""
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


class Data:
    """Settings that text and chats have in common."""

    bad_rows: str
    decontaminate: Decontamination | None
    held_out: HeldOut


@dataclass(frozen=True)
class Form:
    """How documents of a kind (text or chat) become an artifact.

    read: a source's documents, with what is not used of it. write: the tokens of the source of that name, of whose
    documents the first list of indices is for training and the second held out; returns what is counted of them.
    spell: the JSON line of a held-out document, by its index.
    """

    kind: Literal["text", "chat"]
    read: Callable[[Any], Iterable[Found]]
    write: Callable[[Corpus, str, list[int], list[int]], dict[str, int]]
    spell: Callable[[Corpus, int], str]


def prepare(
    data: Data, form: Form, sources: Mapping[str, Any], tokenizer: Any, place: Workspace, extra: dict[str, Any]
) -> dict[str, Any]:
    """Write tokens, ids and held-out documents of every source and `sources.json`; return the stage's metrics.

    extra: what `sources.json` says besides; under "replay" it names the sources that are no part of the domain.
    Raises ValueError for an empty source, one that cannot be split, or a bad row that is to be refused.
    """
    overlap = Contamination(data.decontaminate).read(place.locate, place.listing) if data.decontaminate else None
    with Spool(place.directory / "documents.spool") as spool:
        corpus = Corpus(spool, list(sources), data.bad_rows)
        for name, source in sources.items():
            place.progress(note=f"reading {name}")
            items = form.read(source)
            corpus.add(name, overlap.filtered(name, items) if overlap else items)
        place.progress(note="looking for near-duplicates")
        split = corpus.split(data.held_out)
        done = {}
        for index, (name, source) in enumerate(sources.items()):
            place.progress(step=index, total=len(sources), note=f"tokenising {name}")
            done[name] = {"weight": source.weight, **_write(corpus, index, form, split, place)}
    write_lines(place.directory / REJECTED, (_json(line) for bad in corpus.bad for line in bad.lines))
    if "replay" in extra:
        extra["replay"] = {name: done.pop(name) for name in extra["replay"]}
    if overlap:
        write_lines(place.directory / OVERLAP, map(_json, overlap.lines))
        extra["overlap"] = overlap.summary()
    return finish(place, form.kind, tokenizer, done, split, extra)


def _write(corpus: Corpus, source: int, form: Form, split: Split, place: Workspace) -> dict[str, Any]:
    name, bad = corpus.names[source], corpus.bad[source]
    train, held = corpus.of(source, split, False), corpus.of(source, split, True)
    counts = form.write(corpus, name, train, held)
    write_lines(place.directory / f"{name}.ids.jsonl", (_json(corpus.ids[i]) for i in train))
    write_lines(place.directory / f"{name}.heldout.jsonl", (form.spell(corpus, i) for i in held))
    return {
        **counts,
        "bytes": sum(corpus.spool.size(i, 0) for i in train),
        "held_out_documents": len(held),
        "held_out_bytes": sum(corpus.spool.size(i, 0) for i in held),
        "rejected": dict(bad.rejected),
        "left_out": dict(bad.left_out),
        "ignored_keys": dict(bad.ignored_keys),
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write JSON lines. What UTF-8 cannot spell, half a surrogate pair, is written as JSON escapes it."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.writelines(line + "\n" for line in lines)


def finish(
    place: Workspace, kind: str, tokenizer: Any, sources: dict[str, dict], split: Split, extra: dict[str, Any]
) -> dict[str, Any]:
    """Write `sources.json`, which says everything about the artifact, and return the stage's metrics."""
    summary = {
        "kind": kind,
        "vocab_size": place.rows(tokenizer),
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
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (place.directory / MANIFEST).write_text(text, encoding="utf-8", errors="backslashreplace")
    reported = {key: extra[key] for key in ("replay", "overlap") if extra.get(key)}
    everything = {**sources, **extra.get("replay", {})}
    if ignored := {name: source["ignored_keys"] for name, source in everything.items() if source["ignored_keys"]}:
        reported["ignored_keys"] = ignored
    totals = {key: sum(source[key] for source in everything.values()) for key in ("documents", "tokens", "bytes")}
    totals["rejected"] = sum(sum(source["rejected"].values()) for source in everything.values())
    return {**totals, **summary["split"], "sources": sources, **reported}


def read_sources(directory: Path) -> dict[str, Any]:
    """The `sources.json` of a data artifact: kind, vocab_size (the embedding's rows), eos_token_id, sources and replay
    by name, split."""
    return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
