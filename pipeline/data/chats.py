"""Conversations for instruction tuning: chats in, tokens, targets and a held-out part out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.data.chat.conversations import Chat
from pipeline.data.chat.encoder import ChatEncoder, UnfitChatError
from pipeline.data.chat.template import TemplateSettings, read_template
from pipeline.data.clean.contamination import Decontamination
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Corpus, Data, Form, Workspace, check_sources, prepare
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Found, Item, Rejected, Unused
from pipeline.data.tokens.encoding import spread
from pipeline.data.tokens.store import write_store
from pipeline.data.tokens.vocabulary import NoRowError, check_rows

_BATCH = 200
_FEW_BATCHES = 20
"""A source of fewer batches is done before processes have started."""


class ChatSource(Protocol):
    """Anything that gives conversations, with its weight in the mixture."""

    @property
    def weight(self) -> float:
        """Multiplies the source's own tokens."""

    def read(self, locate: Locate, listing: Listing) -> Iterator[Chat | Rejected | Unused]:
        """Every conversation, what of its row is not used, and every row that is none, in a fixed order."""


@dataclass(frozen=True)
class ChatData(Data):
    """Weighted chat sources by name, how much of each is held out, and the chat template.

    bad_rows: what becomes of a row that is not a conversation, or one that the template cannot spell: skip (counted and
    listed) or refuse. decontaminate: evaluation sets of which no conversation may hold text, or null.

    template: null for the tokenizer's own chat template, the name of one of its templates, Jinja source, or a local
    source of a .jinja file. date, template_options: see `TemplateSettings`; a conversation's own options come first.
    All three are recorded in `sources.json`, for validation, for evaluation and for the tuned model to be saved with.

    Raises ValueError for a bad name, no source, or settings that no template can be given.
    """

    sources: Mapping[str, ChatSource]
    bad_rows: str
    decontaminate: Decontamination | None
    held_out: HeldOut
    template: str | Mapping[str, Any] | None
    date: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sources(self.sources, self.bad_rows)
        TemplateSettings(None, self.date, self.template_options)

    def prepare(self, tokenizer: Any, place: Workspace) -> dict[str, Any]:
        """Write tokens, targets, offsets, ids and held-out chats of every source and `sources.json`; return metrics.

        Raises ValueError for an empty source, one that cannot be split, or a template that is none.
        """
        template = read_template(self.template, place.locate)
        encoder = ChatEncoder(tokenizer, TemplateSettings(template, self.date, self.template_options))
        _warn_of_no_end(encoder)
        num_rows = place.rows(tokenizer)
        form = Form(
            "chat",
            lambda source: _items(source, partial(_batch_encoder, encoder, num_rows), place),
            lambda corpus, name, train, held: _write(corpus, name, train, held, num_rows, place.directory),
            lambda corpus, index: corpus.spool.part(index, 1).decode(),
        )
        return prepare(self, form, self.sources, tokenizer, place, encoder.template.record())


def _warn_of_no_end(encoder: ChatEncoder) -> None:
    if encoder.closing_tokens() == []:
        warnings.warn(
            "the chat template ends an assistant's turn with no special token: the model learns its text but no token "
            "to stop at; give a template that ends it, e.g. with eos_token (data.template)",
            stacklevel=3,
        )


def _items(source: ChatSource, make: Callable[[], Callable], place: Workspace) -> Iterator[Found]:
    """Parts of a record: the plain text, the chat as JSON, its token ids, its targets, and a byte if the template left
    out reasoning; by processes if many."""
    chats = source.read(place.locate, place.listing)
    batches = iter(lambda: list(islice(chats, _BATCH)), [])
    return chain.from_iterable(spread(make, batches, place.encoding.num_workers, _FEW_BATCHES))


def _batch_encoder(encoder: ChatEncoder, num_rows: int) -> Callable[[list[Chat | Rejected | Unused]], list[Found]]:
    return lambda batch: [_encode_one(encoder, num_rows, item) if isinstance(item, Chat) else item for item in batch]


def _encode_one(encoder: ChatEncoder, num_rows: int, chat: Chat) -> Item | Rejected:
    try:
        text = "\n\n".join(message["content"] for message in chat.messages).encode()
        spelled = chat.to_json().encode()
        ids, targets, _, left_out = encoder.encode_whole(chat.messages, chat.tools, chat.options)
        check_rows(ids, num_rows, "the conversation", encoder.tokenizer)
    except NoRowError as error:
        return Rejected(chat.id, "a token has no row in the model's embedding", str(error))
    except UnfitChatError as error:
        return Rejected(chat.id, error.reason, str(error))
    except UnicodeEncodeError:
        return Rejected(chat.id, "invalid UTF-8")
    except (TypeError, ValueError) as error:
        return Rejected(chat.id, f"cannot be encoded ({type(error).__name__})", str(error))
    return chat.id, (text, spelled, ids.tobytes(), targets.tobytes(), b"1" * left_out)


def _encoded(corpus: Corpus, index: int) -> tuple[np.ndarray, np.ndarray]:
    ids, targets = corpus.spool.part(index, 2), corpus.spool.part(index, 3)
    return np.frombuffer(ids, dtype=np.int64), np.frombuffer(targets, dtype=np.uint8)


def _write(
    corpus: Corpus, name: str, train: list[int], held: list[int], num_rows: int, directory: Path
) -> dict[str, int]:
    documents, tokens = write_store(directory, name, (_encoded(corpus, i) for i in train), num_rows)
    return {
        "documents": documents,
        "tokens": tokens,
        "target_tokens": sum(int(_encoded(corpus, i)[1].sum()) for i in train),
        "reasoning_left_out": sum(corpus.spool.size(i, 4) for i in (*train, *held)),
    }
