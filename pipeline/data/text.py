"""Text for post-pretraining: documents in, tokens and a held-out part out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.data.corpus import Corpus, Place, check_sources, finish, write_held_out, write_ids
from pipeline.data.documents import Document, Text
from pipeline.data.formats import Rejected
from pipeline.data.split import HeldOut, Split
from pipeline.data.spool import Spool
from pipeline.data.tokens import encode_documents, write_store


@dataclass(frozen=True)
class TextData:
    """Weighted text sources by name, and how much of each is held out. Raises ValueError for a bad name or none."""

    sources: Mapping[str, Text]
    held_out: HeldOut

    def __post_init__(self) -> None:
        check_sources(self.sources)

    def prepare(self, tokenizer: Any, place: Place) -> dict[str, Any]:
        """Write tokens, offsets, ids and held-out documents of every source and `sources.json`; return metrics.

        Raises ValueError for an empty source or one that cannot be split.
        """
        with Spool(place.directory / "documents.spool") as spool:
            corpus = Corpus(spool, list(self.sources))
            for name, source in self.sources.items():
                place.progress(note=f"reading {name}")
                corpus.add(name, _items(source, place))
            place.progress(note="looking for near-duplicates")
            split = corpus.split(self.held_out)
            done = {}
            for index, (name, source) in enumerate(self.sources.items()):
                place.progress(step=index, total=len(self.sources), note=f"tokenising {name}")
                done[name] = {"weight": source.weight, **_write(corpus, index, name, split, tokenizer, place)}
        return finish(place, "text", tokenizer, done, split, {})


def _items(source: Text, place: Place) -> Iterator[tuple[str, tuple[bytes]] | Rejected]:
    for item in source.read(place.locate, place.listing):
        if isinstance(item, Document):
            try:
                yield item.id, (item.text.encode(),)
            except UnicodeEncodeError:
                yield Rejected(item.id, "invalid UTF-8")
        else:
            yield item


def _write(corpus: Corpus, source: int, name: str, split: Split, tokenizer: Any, place: Place) -> dict[str, Any]:
    train, held = corpus.of(source, split, False), corpus.of(source, split, True)
    encoded = ((ids, None) for ids in encode_documents(tokenizer, (corpus[i] for i in train)))
    documents, tokens = write_store(place.directory, name, encoded, len(tokenizer))
    write_ids(place.directory, name, (corpus.ids[i] for i in train))
    lines = (json.dumps({"id": corpus.ids[i], "text": corpus[i]}, ensure_ascii=False) for i in held)
    write_held_out(place.directory / f"{name}.heldout.jsonl", lines)
    return {
        "documents": documents,
        "tokens": tokens,
        "bytes": sum(len(corpus[i].encode()) for i in train),
        "held_out_documents": len(held),
        "held_out_bytes": sum(len(corpus[i].encode()) for i in held),
        "rejected": dict(corpus.rejected[source]),
    }
