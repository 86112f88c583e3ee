"""Text for post-pretraining: documents in, tokens and a held-out part out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.clean.contamination import Decontamination
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Corpus, Data, Form, Workspace, check_sources, prepare
from pipeline.data.sources.documents import Document, Text
from pipeline.data.sources.rows import Found, Rejected
from pipeline.data.tokens.encoding import TokenCache, encode_all
from pipeline.data.tokens.store import open_store, write_store
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.data.tokens.vocabulary import check_rows, highest_id


@dataclass(frozen=True)
class TextData(Data):
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
        form = Form(
            "text",
            lambda source: _items(source, place),
            lambda corpus, name, train, held: _write(corpus, name, train, held, tokenizer, place),
            lambda corpus, i: json.dumps({"id": corpus.ids[i], "text": corpus[i]}, ensure_ascii=False),
        )
        return prepare(self, form, {**self.sources, **self.replay}, tokenizer, place, {"replay": self.replay})


def _items(source: Text, place: Workspace) -> Iterator[Found]:
    for item in source.read(place.locate, place.listing):
        if isinstance(item, Document):
            try:
                yield item.id, (item.text.encode(),)
            except UnicodeEncodeError:
                yield Rejected(item.id, "invalid UTF-8")
        else:
            yield item


def _write(
    corpus: Corpus, name: str, train: list[int], held: list[int], tokenizer: Any, place: Workspace
) -> dict[str, int]:
    num_rows = place.rows(tokenizer)
    documents, tokens = _tokenise(corpus, train, name, tokenizer, num_rows, place)
    # Validation encodes these in a training stage, where a token without a row would be found too late.
    if highest_id(tokenizer) >= num_rows:
        encoder = TextEncoder(tokenizer, num_rows)
        for i in held:
            encoder.document(corpus[i])
    return {"documents": documents, "tokens": tokens}


def _tokenise(
    corpus: Corpus, train: list[int], name: str, tokenizer: Any, num_rows: int, place: Workspace
) -> tuple[int, int]:
    """Write the tokens of these documents, or copy those that are kept from another time; (documents, tokens)."""
    kept = TokenCache(place.encoding.directory) if place.encoding.directory else None
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


def _checked(ids: np.ndarray, identity: str, name: str, tokenizer: Any, num_rows: int) -> np.ndarray:
    check_rows(ids, num_rows, f"source {name!r}, document {identity!r},", tokenizer)
    return ids
