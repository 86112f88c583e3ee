from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from pipeline.data.packing.mixture import PackedStream
from pipeline.data.tokens.store import TokenStore
from tests.data.packing.segments import unpack


def store(name, num, shortest, longest, seed, chat=False):
    draw = np.random.default_rng(seed)
    offsets = np.cumsum([0, *draw.integers(shortest, longest, num)])
    tokens = draw.integers(1, 60_000, offsets[-1]).astype(np.uint16)
    targets = (draw.random(offsets[-1]) < 0.4).astype(np.uint8) if chat else None
    if targets is not None:
        targets[offsets[1:] - 1] = 1
    return TokenStore(name, tokens, offsets, targets)


SEQ_LEN = 64
CODE, MATHS = store("code", 300, 2, 400, 1), store("maths", 500, 2, 300, 2)
WEIGHTS = {"code": 1.5, "maths": 1.0}


def _stream(**changes):
    return PackedStream(**{"stores": [CODE, MATHS], "weights": WEIGHTS, "seq_len": SEQ_LEN, "seed": 3,
                           "packing": None if "overlong" in changes else "fill", **changes})  # fmt: skip


def _pieces(rows):
    """(source, document) -> {token index: (input, label)} of planned and read rows."""
    found = defaultdict(dict)
    for plan, row in rows:
        place = 0
        for span in plan:
            inputs, labels = (row[key][place : place + span.length] for key in ("input_ids", "labels"))
            for offset in range(span.length):
                index = span.start + offset
                assert index not in found[span.source, span.document]
                found[span.source, span.document][index] = (int(inputs[offset]), int(labels[offset]))
            place += span.length
    return found


def test_shares_are_the_weighted_tokens_within_half_a_per_mille_of_a_million():
    stream = _stream()
    while sum(stream.tokens.values()) < 1_000_000:
        stream.plan()
    wanted = {store.name: WEIGHTS[store.name] * len(store.tokens) for store in (CODE, MATHS)}
    for name, tokens in stream.tokens.items():
        share = wanted[name] / sum(wanted.values())
        assert abs(tokens / sum(stream.tokens.values()) - share) < 0.0005
    assert stream.epochs["code"] / stream.epochs["maths"] == pytest.approx(1.5, rel=0.01)


def test_shares_hold_from_the_start():
    stream = _stream()
    for number in range(1, 200):
        stream.plan()
        total = number * SEQ_LEN
        share = stream.mixture.shares[0]
        assert abs(stream.tokens["code"] - share * total) <= 4 * SEQ_LEN


def test_one_epoch_holds_every_token_once_in_order_with_every_label():
    stream = _stream(stores=[CODE], weights={"code": 1.0})
    rows, spans = [], len(stream.spans[0].table)
    while stream.mixture.cursors[0] < spans and stream.mixture.epochs[0] == 0:
        plan = stream.plan()
        rows.append((plan, stream.read(plan)))
    # The last row may have begun the next epoch, and the open row holds the last spans of this one.
    for span in stream._waiting:
        rows.append(([span], stream.read([span])))
    found = _pieces(rows)
    assert len(found) == 300
    for (_, document), tokens in found.items():
        expected = CODE.tokens[CODE.offsets[document] : CODE.offsets[document + 1]].tolist()
        assert [tokens[index][0] for index in range(len(expected))] == expected
        assert [tokens[index][1] for index in range(len(expected))] == [*expected[1:], -100]


def test_no_document_comes_again_before_all_have_come():
    stream = _stream()
    drawn, different = Counter(), Counter()
    totals = [len(spans.table) for spans in stream.spans]
    for _ in range(4 * sum(totals)):
        span = stream.mixture.next()
        drawn[span] += 1
        different[span.source] += drawn[span] == 1
        epoch = stream.mixture.epochs[span.source]
        assert drawn[span] == epoch + 1
        assert epoch == 0 or different[span.source] == totals[span.source]


def test_rows_are_full_and_segments_are_apart():
    stream = _stream()
    for _ in range(300):
        row = next(stream)
        assert row["segment_ids"].min() == 0
        for segment, piece in enumerate(unpack(row)):
            own = row["segment_ids"] == segment
            assert np.array_equal(row["position_ids"][own], np.arange(len(piece)))
            assert np.array_equal(row["labels"][own][:-1], piece[1:])


def test_a_long_document_keeps_its_context_and_does_not_fill_consecutive_rows():
    stream = _stream()
    plans = [stream.plan() for _ in range(500)]
    full = [plan for plan in plans if plan[0].length == SEQ_LEN]
    assert len(full) > 250
    following = [a[0].document == b[0].document and a[0].source == b[0].source for a, b in pairwise(full)]
    assert np.mean(following) < 0.05


@pytest.mark.parametrize("overlong", [None, "split"])
@pytest.mark.parametrize("stop", [0, 1, 37, 333])
def test_a_resumed_stream_equals_an_uninterrupted_one(overlong, stop):
    changes = {}
    if overlong:
        changes["overlong"] = overlong
        changes["stores"] = [store("code", 90, 2, 90, 5, chat=True), store("maths", 90, 2, 30, 6, chat=True)]
    whole, first, second = _stream(**changes), _stream(**changes), _stream(**changes)
    for _ in range(stop):
        next(whole)
        next(first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(60):
        expected, resumed = next(whole), next(second)
        assert all(np.array_equal(expected[key], resumed[key]) for key in expected)
    assert whole.state_dict() == second.state_dict()
    assert whole.tokens == second.tokens


def test_a_state_of_another_stream_is_refused():
    state = _stream().state_dict()
    for changes in ({"seed": 4}, {"seq_len": 32}, {"weights": {"code": 1.0, "maths": 1.0}}, {"stores": [MATHS, CODE]}):
        with pytest.raises(ValueError, match="start afresh"):
            _stream(**changes).load_state_dict(state)


def test_the_order_follows_the_seed_and_another_source_does_not_change_it():
    def documents(stream, source, num=50):
        return [span for span in (stream.mixture.next() for _ in range(600)) if span.source == source][:num]

    assert documents(_stream(), 0) == documents(_stream(), 0)
    assert documents(_stream(), 0) != documents(_stream(seed=4), 0)
    alone = documents(_stream(stores=[CODE], weights={"code": 1.0}), 0)
    assert [span[1:] for span in documents(_stream(), 0)] == [span[1:] for span in alone]


def test_conversations_stay_whole_and_the_rest_is_padding():
    chats = store("chat", 200, 5, 60, 7, chat=True)
    stream = PackedStream([chats], {"chat": 1.0}, SEQ_LEN, 0, overlong="skip")
    rows = []
    while sum(stream.tokens.values()) < len(chats.tokens):
        plan = stream.plan()
        assert sum(span.length for span in plan) <= SEQ_LEN
        assert all(span.start == 0 and span.length == chats.lengths[span.document] for span in plan)
        rows.append(stream.read(plan))
    # No window: every conversation at once, the longest first, each into the first row that has room.
    rooms: list[int] = []
    for length in sorted(chats.lengths.tolist(), reverse=True):
        fits = next((index for index, room in enumerate(rooms) if room >= length), len(rooms))
        rooms[fits : fits + 1] = [(rooms[fits] if fits < len(rooms) else SEQ_LEN) - length]
    assert len(rooms) <= len(rows) <= len(rooms) + 2
    for row in rows:
        assert (row["labels"][row["segment_ids"] == -1] == -100).all()


def test_every_target_is_a_label_once_even_when_split():
    chats = store("chat", 40, 5, 200, 8, chat=True)
    chats.targets[chats.offsets[:-1]] = 0
    stream = PackedStream([chats], {"chat": 1.0}, SEQ_LEN, 0, overlong="split", lookahead=8)
    plans = []
    while stream.mixture.epochs[0] == 0:
        plans.append(stream.plan())
    spans = {span for plan in plans for span in plan} | set(stream._window.waiting)
    learned = sum(int((stream.read([span])["labels"] != -100).sum()) for span in spans)
    assert learned == int(chats.targets.sum())


def test_rows_of_a_pass_hold_as_many_tokens_as_the_sources():
    stream = _stream()
    rows = stream.units_of_passes(1)
    total = len(CODE.tokens) + len(MATHS.tokens)
    assert rows == -(-total // SEQ_LEN)
    assert stream.num_rows == 0


def test_requests_that_make_no_sense():
    with pytest.raises(ValueError, match=r"differ in \['maths'\]"):
        _stream(weights={"code": 1.0})
    with pytest.raises(ValueError, match=r"weight 0\.0 must be positive"):
        _stream(weights={"code": 0.0, "maths": 1.0})
    with pytest.raises(ValueError, match="seq_len=1"):
        _stream(seq_len=1)
    with pytest.raises(ValueError, match="packing='fill' must be"):
        _stream(overlong="skip", packing="fill")
    empty = TokenStore("code", CODE.tokens[:0], np.array([0]), None)
    with pytest.raises(ValueError, match="nothing to train on"):
        _stream(stores=[empty, MATHS])
