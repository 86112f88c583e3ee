"""Reading a data artifact for training: the right kind, the asked amount, the same rows for every model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.data.prepared import keep_chat_template, open_stream, stream_ahead, unused, validation_rows
from pipeline.data.tokens.store import write_store
from pipeline.models.architecture.tiny import CHAT_TEMPLATE, byte_tokenizer


@pytest.fixture
def text_data(tmp_path):
    tokenizer = byte_tokenizer()
    documents = [f"document {i} " * (3 + i) for i in range(8)]
    encoded = [np.array([*tokenizer(d).input_ids, tokenizer.eos_token_id]) for d in documents]
    write_store(tmp_path, "a", [(ids, None) for ids in encoded], len(tokenizer))
    lines = [json.dumps({"id": str(i), "text": d}) for i, d in enumerate(documents)]
    (tmp_path / "a.heldout.jsonl").write_text("\n".join(lines) + "\n")
    manifest = {"kind": "text", "sources": {"a": {"weight": 1.0}}}
    (tmp_path / "sources.json").write_text(json.dumps(manifest))
    return tmp_path


def test_rows_are_full_and_follow_the_seed(text_data):
    rows = [next(open_stream(text_data, 32, seed, packing="fill")) for seed in (0, 0, 1)]
    assert all((row["segment_ids"] >= 0).all() for row in rows)
    assert (rows[0]["input_ids"] == rows[1]["input_ids"]).all() and (rows[0]["input_ids"] != rows[2]["input_ids"]).any()


def test_general_text_is_replayed_where_asked_and_is_no_part_of_the_domain(text_data):
    tokenizer = byte_tokenizer()
    write_store(text_data, "web", [(np.array([*tokenizer("web " * n).input_ids]), None) for n in range(9, 40)], 300)
    manifest = json.loads((text_data / "sources.json").read_text())
    assert open_stream(text_data, 32, 0, replay=0.0).tokens.keys() == {"a"}
    with pytest.raises(ValueError, match=r"the data has none; add some to data\.replay"):
        open_stream(text_data, 32, 0, replay=0.25)
    entry = {"weight": 1.0, "rejected": {"empty": 2}, "left_out": {}, "ignored_keys": {}}
    (text_data / "sources.json").write_text(json.dumps({**manifest, "replay": {"web": entry}}))
    assert open_stream(text_data, 32, 0).tokens.keys() == {"a"}
    # What waits in the window of first_fit is drawn and not yet seen: more than a tenth of 400 rows of 32 tokens.
    for packing, num_rows in (("fill", 400), ("first_fit", 6_000)):
        stream = open_stream(text_data, 32, 0, replay=0.25, packing=packing)
        for _ in range(num_rows):
            stream.plan()
        assert stream.tokens["web"] / sum(stream.tokens.values()) == pytest.approx(0.25, abs=0.01)
    assert validation_rows(text_data, tokenizer, 32, 200).keys() == {"a"}
    expected = {"rejected": {"a": {}, "web": {"empty": 2}}, "left_out": {"a": {}, "web": {}}}
    assert unused(text_data) == expected
    (text_data / "sources.json").write_text(
        json.dumps({**manifest, "replay": {"web": {**entry, "ignored_keys": {"u": 1}}}})
    )
    assert unused(text_data) == {**expected, "ignored_keys": {"web": {"u": 1}}}


def test_text_is_not_taken_for_chats(text_data):
    with pytest.raises(ValueError, match="trains on chat data, but its data is of kind text"):
        open_stream(text_data, 32, 0, "truncate")


def test_validation_takes_about_what_is_asked_for(text_data):
    rows = validation_rows(text_data, byte_tokenizer(), 32, 200)["a"]
    assert 200 <= sum((row["segment_ids"] >= 0).sum() for row in rows) < 232
    assert all(row["position_ids"][0] == 0 and row["segment_ids"].max() == 0 for row in rows)


def test_the_template_of_the_chats_goes_with_the_model(tmp_path):
    (tmp_path / "sources.json").write_text(json.dumps({"kind": "chat", "chat_template": CHAT_TEMPLATE, "sources": {}}))
    tokenizer, model = byte_tokenizer(), tmp_path / "model"
    model.mkdir()
    keep_chat_template(tmp_path, tokenizer, model)
    assert not (model / "chat_template.jinja").exists()
    tokenizer.chat_template = "another"
    keep_chat_template(tmp_path, tokenizer, model)
    assert (model / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_rows_are_foreseen_as_the_packer_lays_them(text_data):
    """Padding takes room, and general text is no part of a pass: tokens over the row's length say neither."""
    tokenizer = byte_tokenizer()
    write_store(text_data, "web", [(np.array([*tokenizer("web " * n).input_ids]), None) for n in range(9, 40)], 300)
    manifest = json.loads((text_data / "sources.json").read_text())
    (text_data / "sources.json").write_text(json.dumps({**manifest, "replay": {"web": {"weight": 1.0}}}))
    params = {"seq_len": 300, "seed": 3, "packing": "first_fit", "shares": None, "replay": 0.0}
    found = stream_ahead(text_data, params, ("packing", "shares", "replay"))().units_of_passes(2.0)
    stream = open_stream(text_data, 300, 3, packing="first_fit")
    stream.set_length(1000, int(found))
    spans = [span for _ in range(1000) for span in stream.plan()]
    assert len(spans) == 2 * len(set(spans)) == 16
    assert found > 2 * stream.tokens["a"] / 2 / 300
    replayed = stream_ahead(text_data, {**params, "replay": 0.5}, ("packing", "shares", "replay"))()
    assert replayed.units_of_passes(2.0) > 1.5 * found
    assert stream_ahead(None, params, ()) is None
