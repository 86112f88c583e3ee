from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.packing.rows import Span, build_row, chat_spans, cut, text_spans
from pipeline.data.tokens.store import TokenStore
from tests.data.packing.segments import unpack


def store(*documents, targets=None, name="s"):
    offsets = np.cumsum([0, *map(len, documents)])
    tokens = np.concatenate(documents).astype(np.uint16)
    return TokenStore(name, tokens, offsets, None if targets is None else np.concatenate(targets).astype(np.uint8))


def test_documents_are_cut_into_rows_and_a_rest():
    assert cut(np.array([3, 4, 9, 0]), 4).tolist() == [[0, 0, 3], [1, 0, 4], [2, 0, 4], [2, 4, 8], [2, 8, 9]]


def test_a_row_by_hand():
    documents = store([1, 2, 3, 9], [4, 5, 6, 7, 9])
    row = build_row([Span(0, 0, 0, 4), Span(0, 1, 0, 2), Span(0, 1, 4, 5)], [documents], 8)
    assert row["input_ids"].tolist() == [1, 2, 3, 9, 4, 5, 9, 0]
    assert row["labels"].tolist() == [2, 3, 9, -100, 5, 6, -100, -100]
    assert row["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 0, 0]
    assert row["segment_ids"].tolist() == [0, 0, 0, 0, 1, 1, 2, -1]
    assert all(value.dtype == np.int64 and value.shape == (8,) for value in row.values())
    assert [part.tolist() for part in unpack(row)] == [[1, 2, 3, 9], [4, 5], [9]]


def test_only_targets_are_learned():
    chat = store([1, 2, 3, 4, 9], targets=[[0, 0, 1, 0, 1]])
    row = build_row([Span(0, 0, 0, 5)], [chat], 5)
    assert row["labels"].tolist() == [-100, 3, -100, 9, -100]


def test_a_label_crosses_the_cut():
    chat = store([1, 2, 3, 4], targets=[[0, 0, 1, 1]])
    assert build_row([Span(0, 0, 0, 2)], [chat], 2)["labels"].tolist() == [-100, 3]
    assert build_row([Span(0, 0, 2, 4)], [chat], 2)["labels"].tolist() == [4, -100]


def test_spans_must_fit():
    with pytest.raises(ValueError, match="do not fit a row of 3"):
        build_row([Span(0, 0, 0, 4)], [store([1, 2, 3, 9])], 3)


def test_unpacking_gives_the_documents_back():
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 100, draw.integers(1, 40)) for _ in range(50)]
    packed = store(*documents)
    table = text_spans(packed, 16).table
    rebuilt = {}
    for document, start, stop in table.tolist():
        (piece,) = unpack(build_row([Span(0, document, start, stop)], [packed], 16))
        rebuilt.setdefault(document, []).append(piece)
    for number, tokens in enumerate(documents):
        assert np.array_equal(np.concatenate(rebuilt[number]), tokens)


LONG = store([1, 2, 3], [4, 5, 6, 7, 8, 9], targets=[[0, 1, 1], [0, 0, 0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("overlong", "table", "counts"),
    [
        ("split", [[0, 0, 3], [1, 4, 6]], (0, 0, 1, 1)),
        ("truncate", [[0, 0, 3]], (1, 0, 0, 1)),
        ("truncate_left", [[0, 0, 3], [1, 2, 6]], (1, 0, 0, 0)),
        ("skip", [[0, 0, 3]], (0, 1, 0, 0)),
    ],
)
def test_conversations_longer_than_a_row(overlong, table, counts):
    spans = chat_spans(LONG, 4, overlong)
    assert spans.table.tolist() == table
    assert (spans.truncated, spans.skipped, spans.split, spans.without_targets) == counts


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="overlong='cut'"):
        chat_spans(LONG, 4, "cut")
