"""Rows of fixed length from documents of any length.

Shapes: T tokens of a row (`seq_len`), N documents. A span is a stretch of one document that enters a row in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline.data.tokens.store import TokenStore

IGNORED_LABEL = -100
PADDING_SEGMENT = -1
Overlong = Literal["truncate", "truncate_left", "skip", "split"]
OVERLONG = ("truncate", "truncate_left", "skip", "split")


class Span(NamedTuple):
    """Tokens [start, stop) of a document of a source, both by index."""

    source: int
    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens in the span."""
        return self.stop - self.start


@dataclass(frozen=True)
class Spans:
    """The spans of one source: int64[number, 3] with document, start, stop; and how many documents were not kept whole.

    truncated, skipped, split: documents longer than a row, by what was done; without_targets: spans left out because
    nothing in them is to be learned.
    """

    table: np.ndarray
    truncated: int = 0
    skipped: int = 0
    split: int = 0
    without_targets: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all spans."""
        return int((self.table[:, 2] - self.table[:, 1]).sum())

    def counts(self) -> dict[str, int]:
        """How many documents were truncated, skipped, split and left out as nothing is learned; none that is 0."""
        return {key: value for key, value in vars(self).items() if key != "table" and value}


def cut(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """int64[number, 3]: every document as spans of exactly `seq_len` tokens and one with what remains."""
    pieces = -(-lengths // seq_len)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * seq_len
    return np.stack([document, start, np.minimum(start + seq_len, lengths[document])], axis=1).astype(np.int64)


def text_spans(store: TokenStore, seq_len: int) -> Spans:
    """Every token of every document, once."""
    return Spans(cut(store.lengths, seq_len))


def chat_spans(store: TokenStore, seq_len: int, overlong: Overlong) -> Spans:
    """Whole conversations; `overlong` says what becomes of one that is longer than a row.

    truncate keeps its first seq_len tokens, truncate_left its last, skip leaves it out, split gives consecutive spans.
    Raises ValueError for another policy.
    """
    check_overlong(overlong)
    lengths, long = store.lengths, int((store.lengths > seq_len).sum())
    table = cut(lengths, seq_len)
    if overlong == "truncate":
        table = table[table[:, 1] == 0]
    elif overlong == "truncate_left":
        table = table[table[:, 2] == lengths[table[:, 0]]]
        table[:, 1] = np.maximum(table[:, 2] - seq_len, 0)
    elif overlong == "skip":
        table = table[lengths[table[:, 0]] <= seq_len]
    learned = _has_label(store, table)
    counts = {{"skip": "skipped", "split": "split"}.get(overlong, "truncated"): long}
    return Spans(table[learned], without_targets=int((~learned).sum()), **counts)


def check_overlong(overlong: str) -> None:
    """Raise ValueError for a policy that is not known."""
    if overlong not in OVERLONG:
        raise ValueError(f"overlong={overlong!r} must be one of {', '.join(OVERLONG)}")


def _has_label(store: TokenStore, table: np.ndarray) -> np.ndarray:
    """bool[number]: whether any label of the span is a token to be learned."""
    if store.targets is None:
        return np.ones(len(table), dtype=bool)
    total = np.concatenate([[0], np.cumsum(store.targets, dtype=np.int64)])
    base = store.offsets[table[:, 0]]
    # The first token of a document is never a label; the one after the span's last token is, if the document goes on.
    last = np.minimum(table[:, 2] + 1, store.lengths[table[:, 0]])
    return total[base + last] > total[base + table[:, 1] + 1]


def build_row(spans: Sequence[Span], stores: Sequence[TokenStore], seq_len: int) -> dict[str, np.ndarray]:
    """One row from spans that fit in it; every value is int64[T].

    input_ids (0 where padded); labels, already shifted: labels[t] is the token after input t in the same document, also
    where the span ends but the document does not, and IGNORED_LABEL after a document's last token, where the next token
    is no target, and in padding; position_ids count from 0 in every span; segment_ids number the spans from 0, with
    PADDING_SEGMENT in padding. Raises ValueError if the spans are longer than the row.
    """
    if sum(span.length for span in spans) > seq_len:
        raise ValueError(f"spans of {sum(span.length for span in spans)} tokens do not fit a row of {seq_len}")
    row = {name: np.zeros(seq_len, dtype=np.int64) for name in ("input_ids", "position_ids")}
    row["labels"] = np.full(seq_len, IGNORED_LABEL, dtype=np.int64)
    row["segment_ids"] = np.full(seq_len, PADDING_SEGMENT, dtype=np.int64)
    place = 0
    for segment, span in enumerate(spans):
        inputs, labels = _read(stores[span.source], span)
        here = slice(place, place + span.length)
        row["input_ids"][here] = inputs
        row["labels"][here] = labels
        row["position_ids"][here] = np.arange(span.length)
        row["segment_ids"][here] = segment
        place += span.length
    return row


def _read(store: TokenStore, span: Span) -> tuple[np.ndarray, np.ndarray]:
    base, end = int(store.offsets[span.document]), int(store.offsets[span.document + 1])
    first, last = base + span.start, base + span.stop
    labels = np.full(span.length, IGNORED_LABEL, dtype=np.int64)
    following = slice(first + 1, min(last + 1, end))
    next_tokens = store.tokens[following].astype(np.int64)
    if store.targets is not None:
        next_tokens[store.targets[following] == 0] = IGNORED_LABEL
    labels[: len(next_tokens)] = next_tokens
    return store.tokens[first:last].astype(np.int64), labels
