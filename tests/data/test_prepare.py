from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.chat.conversations import Chats, MessageList
from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chats import ChatData
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Workspace, read_sources
from pipeline.data.packing.mixture import PackedStream
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.data.text import TextData
from pipeline.data.tokens.encoding import Encoding
from pipeline.data.tokens.spool import Spool
from pipeline.data.tokens.store import open_store
from tests.data.packing.segments import unpack

HELD_OUT = HeldOut(bytes=None, fraction=0.1, threshold=0.5, seed=1)
ROLES = {"user": "user", "assistant": "assistant"}


def _place(root, out):
    out.mkdir()
    notes = []
    place = Workspace(
        lambda source: root / source["path"],
        lambda source: sorted(path.name for path in (root / source["path"]).iterdir()),
        out,
        lambda **fields: notes.append(fields),
    )
    return place, notes


def _write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


def _words(draw, num):
    return " ".join(f"w{number}" for number in draw.integers(0, 5000, num))


def _text(path, weight):
    return Text(LocalFiles({"kind": "local", "path": path}), weight, "text", None, None)


def test_text_from_files_to_rows(tokenizer, tmp_path):
    draw = np.random.default_rng(0)
    texts = {name: [_words(draw, draw.integers(20, 80)) for _ in range(60)] for name in ("a", "b")}
    for name, rows in texts.items():
        _write_lines(tmp_path / name / "x.jsonl", [{"text": text} for text in rows] + [{"text": ""}])
    data = TextData({"a": _text("a", 2.0), "b": _text("b", 1.0)}, {}, "skip", None, HELD_OUT)
    place, notes = _place(tmp_path, tmp_path / "out")
    metrics = data.prepare(tokenizer, place)
    assert {note["note"] for note in notes} >= {"reading a", "reading b", "tokenising a", "tokenising b"}

    summary = read_sources(place.directory)
    assert summary["kind"] == "text"
    assert metrics["sources"] == summary["sources"]
    for name, rows in texts.items():
        entry, store = summary["sources"][name], open_store(place.directory, name)
        held = [json.loads(line)["text"] for line in (place.directory / f"{name}.heldout.jsonl").open()]
        ids = [json.loads(line) for line in (place.directory / f"{name}.ids.jsonl").open()]
        bounds = zip(store.offsets[:-1], store.offsets[1:], strict=True)
        decoded = [tokenizer.decode(store.tokens[a : b - 1]) for a, b in bounds]
        assert sorted(held + decoded) == sorted(rows)
        assert [rows[int(identity.split("#")[1])] for identity in ids] == decoded
        assert entry["rejected"] == {"empty": 1}
        assert (entry["documents"], entry["tokens"]) == (len(decoded), len(store.tokens))
        assert entry["bytes"] + entry["held_out_bytes"] == sum(len(text) for text in rows)
        assert entry["held_out_documents"] == len(held) > 0
    assert not list(place.directory.glob("*.spool"))

    weights = {name: entry["weight"] for name, entry in summary["sources"].items()}
    stream = PackedStream([open_store(place.directory, name) for name in weights], weights, 32, 0, packing="fill")
    assert sum(map(len, unpack(next(stream)))) == 32


def test_the_same_sources_give_the_same_files(tokenizer, tmp_path):
    draw = np.random.default_rng(1)
    _write_lines(tmp_path / "a" / "x.jsonl", [{"text": _words(draw, 40)} for _ in range(40)])
    outputs = []
    for name in ("one", "two"):
        place, _ = _place(tmp_path, tmp_path / name)
        TextData({"a": _text("a", 1.0)}, {}, "skip", None, HELD_OUT).prepare(tokenizer, place)
        outputs.append({path.name: path.read_bytes() for path in place.directory.iterdir()})
    assert outputs[0] == outputs[1]
    assert set(outputs[0]) == {
        "sources.json",
        "rejected.jsonl",
        *(f"a.{part}" for part in ("tokens.npy", "offsets.npy", "ids.jsonl", "heldout.jsonl")),
    }


def test_texts_seen_before_are_not_tokenised_again(tokenizer, tmp_path, monkeypatch):
    draw = np.random.default_rng(4)
    for name in ("a", "b"):
        _write_lines(tmp_path / name / "x.jsonl", [{"text": _words(draw, 30)} for _ in range(30)])
    outputs = []
    for out, weight in (("one", 1.0), ("two", 3.0)):
        place, _ = _place(tmp_path, tmp_path / out)
        place = replace(place, encoding=Encoding(directory=tmp_path / "cache"))
        data = TextData({"a": _text("a", weight)}, {"b": _text("b", weight)}, "skip", None, HELD_OUT)
        metrics = data.prepare(tokenizer, place)
        assert metrics["sources"].keys() == {"a"} and metrics["replay"].keys() == {"b"}
        outputs.append({path.name: path.read_bytes() for path in place.directory.glob("*.npy")})
        monkeypatch.setattr("pipeline.data.text.encode_all", None)
    assert outputs[0] == outputs[1] and len(outputs[0]) == 4


def _chat(draw, turns=2):
    roles = ("user", "assistant") * turns
    return {"messages": [{"role": role, "content": _words(draw, 12)} for role in roles]}


def test_chats_from_files_to_rows(tokenizer, tmp_path):
    draw = np.random.default_rng(2)
    rows = [_chat(draw) for _ in range(60)]
    bad = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "x"}]}
    _write_lines(tmp_path / "a" / "x.jsonl", [*rows, bad])
    source = Chats(LocalFiles({"kind": "local", "path": "a"}), 1.0, MessageList("messages", "role", "content", ROLES))
    place, _ = _place(tmp_path, tmp_path / "out")
    metrics = ChatData({"a": source}, "skip", None, HELD_OUT, None).prepare(tokenizer, place)
    assert metrics["sources"]["a"]["rejected"] == {"a message spells a special token": 1}

    store, encoder = open_store(place.directory, "a"), ChatEncoder(tokenizer)
    held = [json.loads(line)["messages"] for line in (place.directory / "a.heldout.jsonl").open()]
    ids = [json.loads(line) for line in (place.directory / "a.ids.jsonl").open()]
    assert len(held) + len(ids) == len(rows)
    trained = [rows[int(identity.split("#")[1])]["messages"] for identity in ids]
    assert not any(chat in trained for chat in held)
    for number, messages in enumerate(trained):
        own = slice(store.offsets[number], store.offsets[number + 1])
        tokens, targets = encoder.encode(messages)
        assert np.array_equal(store.tokens[own], tokens)
        assert np.array_equal(store.targets[own], targets)
    assert metrics["sources"]["a"]["target_tokens"] == int(store.targets.sum())
    assert read_sources(place.directory)["chat_template"] == tokenizer.chat_template
    row = next(PackedStream([store], {"a": 1.0}, 512, 0, overlong="skip"))
    assert (row["labels"] != -100).any()


@pytest.mark.slow
def test_many_chats_are_encoded_by_processes_to_the_same_files(tokenizer, tmp_path, monkeypatch):
    draw = np.random.default_rng(6)
    _write_lines(tmp_path / "a" / "x.jsonl", [*(_chat(draw) for _ in range(90)), {"messages": []}])
    source = Chats(LocalFiles({"kind": "local", "path": "a"}), 1.0, MessageList("messages", "role", "content", ROLES))
    outputs = []
    monkeypatch.setattr("pipeline.data.chats._BATCH", 10)
    monkeypatch.setattr("pipeline.data.chats._FEW_BATCHES", 2)
    for num_workers in (1, 2):
        place, _ = _place(tmp_path, tmp_path / f"out-{num_workers}")
        place = replace(place, encoding=Encoding(num_workers))
        metrics = ChatData({"a": source}, "skip", None, HELD_OUT, None).prepare(tokenizer, place)
        assert metrics["sources"]["a"]["rejected"] == {"empty": 1}
        outputs.append({path.name: path.read_bytes() for path in place.directory.iterdir()})
    assert outputs[0] == outputs[1]


def test_a_template_of_the_data_replaces_the_tokenizers(make_tokenizer, tmp_path):
    draw = np.random.default_rng(3)
    _write_lines(tmp_path / "a" / "x.jsonl", [_chat(draw) for _ in range(20)])
    source = Chats(LocalFiles({"kind": "local", "path": "a"}), 1.0, MessageList("messages", "role", "content", ROLES))
    template = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}{{ m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    place, _ = _place(tmp_path, tmp_path / "out")
    tokenizer = make_tokenizer(None)
    ChatData({"a": source}, "skip", None, HELD_OUT, template).prepare(tokenizer, place)
    assert read_sources(place.directory)["chat_template"] == template
    assert tokenizer.decode(open_store(place.directory, "a").tokens).startswith("[user]w")


def test_an_empty_source_stops_everything_and_is_named(tokenizer, tmp_path):
    _write_lines(tmp_path / "full" / "x.jsonl", [{"text": "some words"}])
    _write_lines(tmp_path / "void" / "x.jsonl", [{"text": " "}])
    place, _ = _place(tmp_path, tmp_path / "out")
    data = TextData({"full": _text("full", 1.0), "void": _text("void", 1.0)}, {}, "skip", None, HELD_OUT)
    with pytest.raises(ValueError, match=r"source 'void' is empty.*rejected: \{'empty': 1\}"):
        data.prepare(tokenizer, place)
    assert not list(place.directory.iterdir())


def test_a_name_stands_for_one_source():
    with pytest.raises(ValueError, match=r"data\.sources and data\.replay both name a"):
        TextData({"a": None}, {"a": None}, "skip", None, HELD_OUT)


@pytest.mark.parametrize("sources", [{}, {"a/b": None}, {"": None}, {"../x": None}])
def test_source_names_are_file_names(sources):
    with pytest.raises(ValueError, match="source"):
        TextData(sources, {}, "skip", None, HELD_OUT)


def test_records_of_a_spool(tmp_path):
    with Spool(tmp_path / "s") as spool:
        spool.append(b"a", b"", b"ccc")
        spool.append(b"d")
        assert spool.part(0, 2) == b"ccc"
        spool.append(b"e")
        assert [spool.part(0, 1), spool.part(1, 0), spool.part(2, 0)] == [b"", b"d", b"e"]
        assert len(spool) == 3
        with pytest.raises(IndexError, match="record 1 has no part 1"):
            spool.part(1, 1)
    assert not (tmp_path / "s").exists()
