"""Text for post-pretraining: documents in, tokens and a held-out part out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.clean.contamination import Contamination, Decontamination
from pipeline.data.clean.split import HeldOut, Split
from pipeline.data.corpus import (
    Corpus,
    Item,
    Workspace,
    check_sources,
    counts,
    finish,
    write_held_out,
    write_ids,
    write_overlap,
    write_rejected,
)
from pipeline.data.sources.documents import Document, Text
from pipeline.data.sources.rows import Rejected, Unused
from pipeline.data.tokens.encoding import TokenCache, encode_all
from pipeline.data.tokens.spool import Spool
from pipeline.data.tokens.store import open_store, write_store
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.data.tokens.vocabulary import check_rows, highest_id


@dataclass(frozen=True)
class TextData:
    """Weighted text sources by name, and how much of each is held out.

    replay: sources of general text, prepared in the same way and used by a training stage whose `replay` is more than
    0; they are no part of the domain, so neither validation nor the domain's evaluation reads them. bad_rows: what
    becomes of a row that is damaged or of another form: skip (counted and listed) or refuse. decontaminate: evaluation
    sets of which no document may hold text, or null. Raises ValueError for a bad name or no source.
    """

    sources: Mapping[str, Text]
    replay: Mapping[str, Text]
    bad_rows: str
    decontaminate: Decontamination | None
    held_out: HeldOut

    def __post_init__(self) -> None:
        check_sources(self.sources, self.bad_rows, self.replay)

    def prepare(self, tokenizer: Any, place: Workspace) -> dict[str, Any]:
        """Write tokens, offsets, ids and held-out documents of every source and `sources.json`; return metrics.

        Raises ValueError for an empty source, one that cannot be split, or a bad row that is to be refused.
        """
        everything = {**self.sources, **self.replay}
        overlap = Contamination(self.decontaminate).read(place.locate, place.listing) if self.decontaminate else None
        with Spool(place.directory / "documents.spool") as spool:
            corpus = Corpus(spool, list(everything), self.bad_rows)
            for name, source in everything.items():
                place.progress(note=f"reading {name}")
                items = _items(source, place)
                corpus.add(name, overlap.filtered(name, items) if overlap else items)
            place.progress(note="looking for near-duplicates")
            split = corpus.split(self.held_out)
            done = {}
            for index, (name, source) in enumerate(everything.items()):
                place.progress(step=index, total=len(everything), note=f"tokenising {name}")
                done[name] = {"weight": source.weight, **_write(corpus, index, name, split, tokenizer, place)}
            write_rejected(place, corpus)
        extra: dict[str, Any] = {"replay": {name: done.pop(name) for name in self.replay}}
        if overlap:
            extra["overlap"] = write_overlap(place, overlap)
        return finish(place, "text", tokenizer, done, split, extra)


def _items(source: Text, place: Workspace) -> Iterator[Item | Rejected | Unused]:
    for item in source.read(place.locate, place.listing):
        if isinstance(item, Document):
            try:
                yield item.id, (item.text.encode(),)
            except UnicodeEncodeError:
                yield Rejected(item.id, "invalid UTF-8")
        else:
            yield item


def _write(corpus: Corpus, source: int, name: str, split: Split, tokenizer: Any, place: Workspace) -> dict[str, Any]:
    train, held = corpus.of(source, split, False), corpus.of(source, split, True)
    documents, tokens = _tokenise(corpus, train, name, tokenizer, place)
    _check_held_out((corpus[i] for i in held), tokenizer, place.rows(tokenizer))
    write_ids(place.directory, name, (corpus.ids[i] for i in train))
    lines = (json.dumps({"id": corpus.ids[i], "text": corpus[i]}, ensure_ascii=False) for i in held)
    write_held_out(place.directory / f"{name}.heldout.jsonl", lines)
    return {
        "documents": documents,
        "tokens": tokens,
        "bytes": sum(corpus.spool.size(i, 0) for i in train),
        "held_out_documents": len(held),
        "held_out_bytes": sum(corpus.spool.size(i, 0) for i in held),
        **counts(corpus, source),
    }


def _tokenise(corpus: Corpus, train: list[int], name: str, tokenizer: Any, place: Workspace) -> tuple[int, int]:
    """Write the tokens of these documents, or copy those that are kept from another time; (documents, tokens)."""
    kept = TokenCache(place.encoding.directory) if place.encoding.directory else None
    num_rows = place.rows(tokenizer)
    key = kept.key(tokenizer, (corpus.spool.part(i, 0) for i in train), num_rows) if kept else ""
    if kept and kept.fetch(key, place.directory, name):
        store = open_store(place.directory, name)
        return len(store.offsets) - 1, len(store.tokens)
    encoded = zip(train, encode_all(tokenizer, (corpus[i] for i in train), place.encoding), strict=True)
    checked = ((_checked(ids, corpus.ids[i], name, tokenizer, num_rows), None) for i, ids in encoded)
    written = write_store(place.directory, name, checked, num_rows)
    if kept:
        kept.keep(key, place.directory, name)
    return written


def _check_held_out(texts: Iterator[str], tokenizer: Any, num_rows: int) -> None:
    """Validation encodes these in a training stage, where a token without a row would be found too late."""
    if highest_id(tokenizer) >= num_rows:
        encoder = TextEncoder(tokenizer, num_rows)
        for text in texts:
            encoder.document(text)


def _checked(ids: np.ndarray, identity: str, name: str, tokenizer: Any, num_rows: int) -> np.ndarray:
    check_rows(ids, num_rows, f"source {name!r}, document {identity!r},", tokenizer)
    return ids
