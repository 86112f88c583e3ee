"""Batches of a number of examples: which ones, in what rows, for how long."""

import json
from collections import Counter

import numpy as np
import pytest

from pipeline.data.packing.examples import ExampleStream, lay
from pipeline.data.packing.mixture import PackedStream
from pipeline.data.packing.rows import Span
from tests.data.packing.test_mixture import store

CHATS = [store("a", 90, 5, 60, 1, chat=True), store("b", 37, 5, 60, 2, chat=True)]
WEIGHTS = {"a": 1.0, "b": 1.0}


def stream_of(seq_len=64, kind=ExampleStream, stores=CHATS, **changes):
    return kind(stores, {one.name: 1.0 for one in stores}, seq_len, 3, "truncate", **changes)


def examples(batch):
    return Counter(span for row in batch for span in row)


def test_a_batch_has_that_many_examples_each_whole_and_once_in_a_row_that_holds_it():
    stream = stream_of()
    for _ in range(20):
        batch = stream.plan_batch(16)
        assert sum(map(len, batch)) == 16 == len(examples(batch)) and len(batch) < 16
        assert all(sum(span.length for span in row) <= 64 for row in batch)


def test_the_examples_of_a_batch_do_not_depend_on_how_they_are_packed():
    narrow, wide = stream_of(60), stream_of(300)
    for _ in range(30):
        one, other = narrow.plan_batch(16), wide.plan_batch(16)
        assert examples(one) == examples(other) and len(one) > len(other)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_epoch_sees_every_example_once_before_any_comes_again(size):
    stream = stream_of()
    assert stream.units_of_passes(1) == 127 and stream.units_of_passes(2) == 254
    assert stream.units_of_passes(1.5) == 190.5
    steps = -(-254 // size)
    stream.set_length(steps * size, 254)
    batches = [stream.plan_batch(size) for _ in range(steps)]
    seen = sum(map(examples, batches), Counter())
    assert set(seen.values()) == {2} and stream.epochs == {"a": 2.0, "b": 2.0}
    assert sum(map(len, batches[-1])) == 254 - (steps - 1) * size  # what is left, and no example of a third pass
    first = [span for batch in batches for row in batch for span in row][: 127 - 127 % size]
    assert len(set(first)) == len(first)


def test_a_resumed_stream_goes_on_with_the_very_next_batch():
    whole, first, second = (stream_of() for _ in range(3))
    expected = [whole.plan_batch(10) for _ in range(40)]
    for stop in (1, 12, 13, 39):
        first = stream_of()
        for _ in range(stop):
            first.plan_batch(10)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [second.plan_batch(10) for _ in range(40 - stop)] == expected[stop:]
        assert second.summary() == whole.summary()
    with pytest.raises(ValueError, match="start afresh"):
        stream_of(kind=PackedStream).load_state_dict(whole.state_dict())


def test_its_summary_counts_rows_and_examples_and_what_is_padding():
    stream = stream_of()
    batches = [stream.plan_batch(12) for _ in range(9)]
    tokens = sum(span.length for batch in batches for row in batch for span in row)
    packing = stream.summary()["packing"]
    assert packing["examples"] == 108 and packing["rows"] == sum(map(len, batches))
    assert packing["efficiency"] == tokens / (64 * packing["rows"]) and sum(stream.tokens.values()) == tokens
    assert stream.unit_tokens == pytest.approx(np.concatenate([one.lengths for one in CHATS]).mean())


def test_shares_that_change_reach_their_end():
    stores = [store("a", 900, 5, 60, 1, chat=True), store("b", 900, 5, 60, 2, chat=True)]
    stream = stream_of(stores=stores, shares=[[0, {"a": 1, "b": 0}], [1, {"a": 0, "b": 1}]])
    stream.set_length(800)
    counts = [Counter(span.source for row in stream.plan_batch(80) for span in row) for _ in range(10)]
    assert counts[0][0] > 70 and counts[-1][1] > 70 and abs(counts[4][0] - counts[5][1]) < 10


@pytest.mark.parametrize("kind", [PackedStream, ExampleStream])
@pytest.mark.parametrize("num_tokens", [1, 64, 1_000, 9_999])
def test_a_length_in_tokens_counts_no_padding(kind, num_tokens):
    stream = stream_of(kind=kind)
    units = stream.units_of_tokens(num_tokens)
    assert stream.num_rows == 0
    for _ in range(units - 1):
        stream.plan()
    assert sum(stream.tokens.values()) < num_tokens
    stream.plan()
    assert num_tokens <= sum(stream.tokens.values()) < num_tokens + 64
    if kind is PackedStream and num_tokens > 1_000:
        assert units > -(-num_tokens // 64)  # rows as if they were full would be too few


def test_rows_without_padding_are_not_laid_to_be_counted():
    texts = [store("t", 50, 5, 90, 1)]
    stream = PackedStream(texts, {"t": 1.0}, 64, 3, packing="fill")
    assert [stream.units_of_tokens(n) for n in (1, 64, 65, 10**12)] == [1, 1, 2, 10**12 // 64]


def test_the_longest_goes_first_and_into_the_first_row_with_room():
    spans = [Span(0, number, 0, length) for number, length in enumerate([3, 9, 5, 5, 1, 7])]
    assert [[span.length for span in row] for row in lay(spans, 10)] == [[9, 1], [7, 3], [5, 5]]
    assert lay([], 10) == []
