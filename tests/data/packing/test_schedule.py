"""Shares of tokens over a run: as asked, followed, and the same after a resume; every document once an epoch."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.packing.mixture import PackedStream
from pipeline.data.packing.schedule import check_shares, schedule
from pipeline.data.tokens.store import TokenStore

SEQ_LEN = 128
NAMES = ("code", "maths", "web")


def _store(name, num, longest, seed):
    draw = np.random.default_rng(seed)
    offsets = np.cumsum([0, *draw.integers(2, longest, num)])
    return TokenStore(name, np.ones(offsets[-1], dtype=np.uint16), offsets, None)


STORES = [_store("code", 900, 400, 1), _store("maths", 1500, 300, 2), _store("web", 400, 900, 3)]


def _stream(num_rows, **changes):
    stream = PackedStream(STORES, dict.fromkeys(NAMES, 1.0), SEQ_LEN, 3, **{"packing": "fill", **changes})
    stream.set_length(num_rows)
    return stream


def _plan(stream, num_rows):
    """Tokens of every source after each row: int64[rows, S]."""
    taken = []
    for _ in range(num_rows):
        stream.plan()
        taken.append(list(stream.tokens.values()))
    return np.array(taken)


@pytest.mark.parametrize("packing", ["fill", "first_fit"])
def test_shares_asked_are_shares_observed_within_half_a_percent_of_a_million_tokens(packing):
    asked = {"code": 0.55, "maths": 0.3, "web": 0.15}
    num_rows = 1_000_000 // SEQ_LEN + 1
    stream = _stream(num_rows, packing=packing, shares=asked)
    _plan(stream, num_rows)
    found = stream.summary()["shares_by_source"]
    assert sum(stream.tokens.values()) > 950_000
    for name, share in asked.items():
        assert found[name]["asked"] == pytest.approx(share)
        assert abs(found[name]["observed"] - share) < 0.005


def test_a_schedule_is_followed_all_along_the_run():
    """From mostly code to mostly web, and back: in every tenth of the run the shares are the lines' mean over it."""
    points = [[0.0, {"code": 8, "maths": 1, "web": 1}], [0.5, {"code": 1, "maths": 1, "web": 8}],
              [1.0, {"code": 1, "maths": 8, "web": 1}]]  # fmt: skip
    num_rows = 10_000
    stream = _stream(num_rows, shares=points)
    taken = _plan(stream, num_rows)
    tenths = np.diff(taken[np.linspace(0, num_rows, 11).astype(int)[1:] - 1], axis=0, prepend=0)
    observed = tenths / tenths.sum(axis=1, keepdims=True)
    for tenth in range(10):
        progress = np.linspace(tenth / 10, (tenth + 1) / 10, 1001)
        asked = np.mean([stream.mixture.schedule.at(p) for p in progress], axis=0)
        assert np.abs(observed[tenth] - asked).max() < 0.005
    summary = stream.summary()["shares_by_source"]
    assert all(abs(share["asked"] - share["observed"]) < 0.001 for share in summary.values())
    assert stream.mixture.schedule.at(0.25) == pytest.approx([0.45, 0.1, 0.45])


def test_replay_is_a_share_of_its_own_and_may_grow():
    stream = _stream(6_000, replay=0.2, general=["web"])
    _plan(stream, 6_000)
    observed = {name: share["observed"] for name, share in stream.summary()["shares_by_source"].items()}
    assert observed["web"] == pytest.approx(0.2, abs=0.001)
    totals = [spans.num_tokens for spans in stream.spans[:2]]
    assert observed["code"] / observed["maths"] == pytest.approx(totals[0] / totals[1], rel=0.01)
    growing = _stream(6_000, replay=[[0.5, 0.0], [1.0, 0.4]], general=["web"])
    taken = _plan(growing, 6_000)
    assert taken[2_900, 2] == 0
    assert taken[-1, 2] / taken[-1].sum() == pytest.approx(0.1, abs=0.002)


def test_a_source_whose_share_is_nothing_is_not_touched():
    stream = _stream(500, shares={"code": 1, "maths": 0, "web": 1})
    _plan(stream, 500)
    assert stream.tokens["maths"] == 0 and stream.epochs["maths"] == 0


@pytest.mark.parametrize("packing", ["fill", "first_fit"])
def test_every_document_appears_once_an_epoch_and_repetition_is_counted(packing):
    stream = PackedStream([STORES[0]], {"code": 1.0}, SEQ_LEN, 3, packing=packing)
    lengths, seen = STORES[0].lengths, [Counter(), Counter()]
    total = int(lengths.sum())
    drawn = 0
    while drawn < 2 * total:
        span = stream.mixture.next()
        seen[min(1, drawn // total)][span.document] += span.length
        drawn += span.length
    assert seen[0] == {document: int(length) for document, length in enumerate(lengths)} == seen[1]
    fresh = PackedStream([STORES[0]], {"code": 1.0}, SEQ_LEN, 3, packing=packing)
    while sum(fresh.tokens.values()) < 2.5 * total:
        fresh.plan()
    summary = fresh.summary()
    assert summary["epochs_by_source"]["code"] == pytest.approx(2.5, rel=0.01)
    assert summary["repeated_tokens_by_source"]["code"] == fresh.tokens["code"] - total


def test_first_fit_cuts_no_document_and_its_efficiency_is_reported():
    stream = _stream(3_000, packing="first_fit")
    whole = {(span.source, span.document, span.start, span.stop) for span in _spans(stream)}
    for _ in range(3_000):
        assert all((s.source, s.document, s.start, s.stop) in whole for s in stream.plan())
    packing = stream.summary()["packing"]
    assert 0.97 < packing["efficiency"] < 1 and packing["documents_cut_at_a_row_end"] == 0
    filled = _stream(3_000, packing="fill")
    _plan(filled, 3_000)
    assert filled.efficiency == 1.0 and filled.summary()["packing"]["documents_cut_at_a_row_end"] > 0
    assert json.loads(json.dumps(filled.summary())) == filled.summary()


def _spans(stream):
    from pipeline.data.packing.rows import Span

    return [Span(source, *row) for source, spans in enumerate(stream.spans) for row in spans.table.tolist()]


@pytest.mark.parametrize("packing", ["fill", "first_fit"])
def test_a_resumed_schedule_continues_with_the_very_next_row(packing):
    changes = {"packing": packing, "shares": [[0.0, {"code": 1, "maths": 1, "web": 0}],
               [1.0, {"code": 0, "maths": 1, "web": 1}]]}  # fmt: skip
    whole, first, second = (_stream(900, **changes) for _ in range(3))
    expected = [whole.plan() for _ in range(800)]
    for _ in range(311):
        first.plan()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.plan() for _ in range(489)] == expected[311:]
    assert second.state_dict() == whole.state_dict() and second.summary() == whole.summary()
    with pytest.raises(ValueError, match="start afresh"):
        _stream(901, **changes).load_state_dict(first.state_dict())


def test_a_pass_is_of_the_domain():
    rows = _stream(1, replay=0.5, general=["web"]).units_of_passes(1)
    domain = sum(int(store.lengths.sum()) for store in STORES[:2])
    assert rows == pytest.approx(2 * domain / SEQ_LEN, rel=0.01)


def test_a_changing_mixture_needs_a_length():
    stream = PackedStream(STORES, dict.fromkeys(NAMES, 1.0), SEQ_LEN, 3, replay=[[0, 0.1], [1, 0.2]], general=["web"])
    assert stream.units_of_passes(1) > 0
    with pytest.raises(ValueError, match="call set_length first"):
        stream.plan()


@pytest.mark.parametrize(
    ("shares", "replay", "message"),
    [
        ({"a": 1.0}, None, r"must name every source of the data once: \['a', 'b'\]"),
        ({"a": 1, "b": -1}, None, "must not be negative"),
        ({"a": 0, "b": 0}, None, "at least one must be more than 0"),
        ([[0.5, {"a": 1, "b": 1}], [0.5, {"a": 1, "b": 2}]], None, "must ascend"),
        ([[0, {"a": 1, "b": 1}], [2, {"a": 1, "b": 2}]], None, "must ascend"),
        ([0.5, 0.5], None, r"a list of points \[progress, value\]"),
        (None, 1.0, "at least 0 and less than 1"),
        (None, [[0, 0.1], [1, "much"]], "at least 0 and less than 1"),
    ],
)
def test_shares_that_make_no_sense(shares, replay, message):
    with pytest.raises(ValueError, match=message):
        check_shares(shares, replay)
        schedule(["a", "b"], [1.0, 1.0], shares, replay, [])


def _uniform(name, num, shortest, longest, seed):
    offsets = np.cumsum([0, *np.random.default_rng(seed).integers(shortest, longest, num)])
    return TokenStore(name, np.ones(offsets[-1], dtype=np.uint16), offsets, None)


def _small(num, num_sources, packing, num_epochs=1, seq_len=128):
    """A stream of sources with `num` documents in all, as a run of so many epochs in steps of seven rows has it."""
    sizes = [num] if num_sources == 1 else [num // 4, num - num // 4]
    stores = [_uniform(f"s{i}", size, 5, 90, i) for i, size in enumerate(sizes)]
    stream = PackedStream(stores, {s.name: 1.0 for s in stores}, seq_len, 3, packing=packing)
    rows = int(np.ceil(stream.units_of_passes(num_epochs)))
    stream.set_length(-(-rows // 7) * 7, rows)
    return stream, -(-rows // 7) * 7


@pytest.mark.parametrize("num_epochs", [1, 3])
@pytest.mark.parametrize("num_sources", [1, 2])
@pytest.mark.parametrize("num", [20, 300])
def test_first_fit_places_every_document_once_an_epoch_and_ends_with_it(num, num_sources, num_epochs):
    stream, num_rows = _small(num, num_sources, "first_fit", num_epochs)
    placed, seen = [stream.plan() for _ in range(num_rows)], Counter()
    for row in placed:
        numbers = {seen[span] for span in row}
        assert len(numbers) < 2, "a row holds two epochs"
        seen.update(row)
        # Nothing is a time ahead of anything else by more than the epoch that is under way.
        assert max(seen.values()) <= min(seen[span] for span in _spans(stream)) + 1
    assert seen == Counter({span: num_epochs for span in _spans(stream)})
    summary, tokens = stream.summary(), {store.name: len(store.tokens) for store in stream.stores}
    assert summary["epochs_by_source"] == dict.fromkeys(tokens, float(num_epochs))
    assert summary["repeated_tokens_by_source"] == {name: n * (num_epochs - 1) for name, n in tokens.items()}
    assert stream.read([])["labels"].max() == -100 and next(stream)["spans"].shape == (0, 4)


@pytest.mark.parametrize("num_sources", [1, 2])
@pytest.mark.parametrize("num", [20, 300])
def test_fill_shows_every_token_once_an_epoch_but_for_those_of_an_open_row(num, num_sources):
    stream, _ = _small(num, num_sources, "fill")
    seen = Counter()
    for _ in range(int(stream.units_of_passes(1))):
        seen.update((s.source, s.document, at) for s in stream.plan() for at in range(s.start, s.stop))
    total = sum(len(store.tokens) for store in stream.stores)
    assert len(seen) > total - SEQ_LEN and seen.total() - len(seen) < SEQ_LEN


def test_sources_seen_unequally_often_keep_their_order_of_passes_and_their_shares():
    """Each goes through its own passes, and a row need not end with one."""
    stores = [_uniform("a", 30, 5, 90, 1), _uniform("b", 400, 5, 90, 2)]
    stream = PackedStream(stores, {"a": 6.0, "b": 1.0}, SEQ_LEN, 3, packing="first_fit")
    seen = Counter()
    for _ in range(700):
        for span in stream.plan():
            seen[span] += 1
            own = [seen[other] for other in _spans(stream) if other.source == span.source]
            assert max(own) - min(own) <= 1
    assert stream.epochs["a"] == pytest.approx(6 * stream.epochs["b"], rel=0.05) and stream.efficiency > 0.97
    again = {span: count - 1 for span, count in seen.items() if span.source == 0}
    assert stream.summary()["repeated_tokens_by_source"]["a"] == sum(span.length * n for span, n in again.items())


@pytest.mark.parametrize("num_sources", [1, 2])
@pytest.mark.parametrize("packing", ["fill", "first_fit"])
def test_a_run_resumed_anywhere_around_an_epochs_end_continues_with_the_very_next_row(packing, num_sources):
    whole, num_rows = _small(60, num_sources, packing, 2)
    end = int(whole.units_of_passes(1))
    states, rows = [], []
    for _ in range(num_rows):
        states.append(json.dumps(whole.state_dict()))
        rows.append(whole.plan())
    for stop in range(end - 3, end + 3):
        resumed, _ = _small(60, num_sources, packing, 2)
        resumed.load_state_dict(json.loads(states[stop]))
        assert [resumed.plan() for _ in range(num_rows - stop)] == rows[stop:]
        assert resumed.state_dict() == whole.state_dict() and resumed.summary() == whole.summary()


def test_first_fit_packs_normal_sources_as_tightly_over_epochs_as_within_one():
    stream, num_rows = _small(3_000, 2, "first_fit", 3, seq_len=512)
    for _ in range(num_rows):
        stream.plan()
    assert stream.efficiency > 0.985


@pytest.mark.parametrize("longest", [64, 126])
def test_a_schedule_reaches_its_end_where_rows_have_padding(longest):
    """Two documents a row, or one: up to a quarter of every row is padding."""
    stores = [_uniform(name, 4000, longest - 25, longest, i) for i, name in enumerate(NAMES)]
    points = [[0.0, {"code": 1, "maths": 1, "web": 0}], [1.0, {"code": 0, "maths": 1, "web": 1}]]
    for mixing in ({"shares": points}, {"replay": [[0.0, 0.0], [1.0, 0.5]], "general": ["web"]}):
        stream = PackedStream(stores, dict.fromkeys(NAMES, 1.0), 150, 3, packing="first_fit", **mixing)
        stream.set_length(4_000)
        taken = _plan(stream, 4_000)
        assert stream.efficiency < (0.95 if longest < 100 else 0.8)
        last = taken[-1] - taken[-401]
        share = stream.mixture.schedule.at(0.95)
        assert last / last.sum() == pytest.approx(share, abs=0.02)
        for found in stream.summary()["shares_by_source"].values():
            assert found["observed"] == pytest.approx(found["asked"], abs=0.01)
        asked = [found["asked"] for found in stream.summary()["shares_by_source"].values()]
        assert asked == pytest.approx(np.mean([stream.mixture.schedule.at(p) for p in np.linspace(0, 1, 99)], axis=0),
                                      abs=0.01)  # fmt: skip


def test_first_fit_is_the_default_and_what_every_config_but_the_embedded_demo_asks_for():
    assert PackedStream(STORES, dict.fromkeys(NAMES, 1.0), SEQ_LEN, 3).packing == "first_fit"
    conf = Path(__file__).parents[3] / "conf"
    asked = {str(path.relative_to(conf)): found.group(1) for path in conf.rglob("*.yaml")
             if (found := re.search(r"^ *(?:pretrain\.)?packing: *(\w+)", path.read_text(), re.M))}  # fmt: skip
    assert asked.pop("pretrain/embedded.yaml") == "fill"
    assert asked.pop("pretrain/paper.yaml") == "first_fit" and set(asked.values()) <= {"first_fit"}


@pytest.mark.parametrize("lookahead", [1, 5])
def test_sources_of_a_group_go_through_their_passes_together_however_small_the_window(lookahead):
    """Two are seen equally often, and a third, of long documents, makes one of them run ahead of the other."""
    stores = [_uniform("a", 200, 5, 20, 1), _uniform("b", 7, 5, 20, 2), _uniform("c", 90, 100, 128, 3)]
    weights = {"a": 1.0, "b": 1.0, "c": 2.5}
    stream = PackedStream(stores, weights, SEQ_LEN, 3, lookahead=lookahead, packing="first_fit")
    seen, own = Counter(), [span for span in _spans(stream) if span.source < 2]
    for _ in range(1_000):
        for span in stream.plan():
            seen[span] += 1
            assert span.source == 2 or seen[span] <= min(seen[other] for other in own) + 1
    assert min(seen[span] for span in own) >= 3
