"""Damaged and odd data through the whole preparation: nothing crashes midway, and nothing is dropped in silence."""

from __future__ import annotations

import datetime
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.chat.columns import ByColumns
from pipeline.data.chat.conversations import Chats, PromptAndResponse
from pipeline.data.chat.messages import BAD_CALLS, BAD_TOOLS, NOT_TEXT
from pipeline.data.chats import ChatData
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Workspace
from pipeline.data.sources.documents import LONGEST_RUN, LocalFiles, Text
from pipeline.data.text import TextData
from pipeline.data.tokens.encoding import Encoding
from pipeline.data.tokens.store import open_store
from tests.data.conftest import CHATML

ROLES = {"user": "user", "assistant": "assistant"}
NOTHING_HELD_OUT = HeldOut(bytes=0, fraction=None, threshold=0.5, seed=1)
GOOD = {"good.jsonl": "\n".join(json.dumps({"text": f"good document {number}"}) for number in range(5)).encode()}


@pytest.fixture
def prepared(tokenizer, tmp_path):
    """Writes files, prepares them as one source, and gives (metrics of the source, rejected rows, texts trained on)."""

    def prepare(files, bad_rows="skip", held_out=NOTHING_HELD_OUT, encoding=None):
        root, out = tmp_path / "in", tmp_path / f"out-{bad_rows}"
        for directory in (root, out):
            directory.mkdir(exist_ok=True)
        for name, data in {**GOOD, **files}.items():
            (root / name).write_bytes(data)
        source = Text(LocalFiles({"kind": "local", "path": "in"}), 1.0, "text", None, None)
        place = Workspace(
            lambda source: root, lambda source: sorted(p.name for p in root.iterdir()), out, lambda **fields: None,
            encoding or Encoding(),
        )  # fmt: skip
        metrics = TextData({"a": source}, {}, bad_rows, None, held_out).prepare(tokenizer, place)
        store = open_store(out, "a")
        bounds = zip(store.offsets[:-1], store.offsets[1:] - 1, strict=True)
        texts = [tokenizer.decode(store.tokens[a:b], clean_up_tokenization_spaces=False) for a, b in bounds]
        rejected = [json.loads(line) for line in (out / "rejected.jsonl").open()]
        return metrics["sources"]["a"], rejected, texts

    return prepare


def _parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _lines(*rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


BAD = {
    "invalid-utf8-file": ({"x.txt": b"caf\xe9"}, {"invalid UTF-8": 1}, 0),
    "invalid-utf8-line": ({"x.jsonl": b'{"text": "\xff"}\n{"text": "fine"}'}, {"invalid UTF-8": 1}, 1),
    "lone-surrogate": ({"x.jsonl": b'{"text": "\\ud800"}\n{"text": "fine"}'}, {"invalid UTF-8": 1}, 1),
    "empty": ({"x.txt": b"", "y.txt": b" \n\t ", "z.jsonl": _lines({"text": None}, {"text": ""})}, {"empty": 4}, 0),
    "truncated-gz": ({"x.txt.gz": gzip.compress(b"text " * 99)[:-9]}, {"broken gzip (EOFError)": 1}, 0),
    "truncated-parquet": (
        {"x.parquet": _parquet([{"text": "lost"}])[:-20]}, {"not readable as parquet (ArrowInvalid)": 1}, 0,
    ),
    "mixed-schemas": (
        {"x.jsonl": _lines({"text": "fine"}, {"body": "b"}, {"text": 7}, {"text": ["a"]}, [1]),
         "y.parquet": _parquet([{"content": "c", "n": 1}]), "z.parquet": _parquet([{"n": 1.5, "text": "fine"}])},
        {"no column 'text'": 2, "column 'text' is not text": 2, "not a JSON object": 1}, 2,
    ),
    "nul": ({"x.txt": b"a\0b"}, {"holds a NUL byte": 1}, 0),
    "deep-json": ({"x.jsonl": b"[" * 200_000, "y.jsonl": b'{"n":' * 100_000}, {"invalid JSON": 2}, 0),
    "huge-number": ({"x.jsonl": b'{"text": "a", "n": ' + b"9" * 5000 + b"}"}, {"invalid JSON": 1}, 0),
    "one-word": (
        {"x.txt": b"x" * (LONGEST_RUN + 1)}, {"one run of characters without white space": 1}, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_counted_listed_and_skipped_or_refused(prepared, case):
    files, reasons, num_good = BAD[case]
    found, rejected, texts = prepared(files)
    assert found["rejected"] == reasons and found["left_out"] == {}
    assert len(rejected) == sum(reasons.values()) and {row["reason"] for row in rejected} == set(reasons)
    assert all(row["source"] == "a" and row["id"].split("#")[0] in files for row in rejected)
    assert len(texts) == found["documents"] == 5 + num_good
    with pytest.raises(ValueError, match=rf"source 'a': {len(rejected)} of \d+ rows cannot be used.*bad_rows=skip"):
        prepared(files, bad_rows="refuse")


def test_rows_before_the_damage_are_kept(prepared):
    lines = "\n".join(json.dumps({"text": f"row {n} {'x y z ' * (n % 50)}"}) for n in range(900)).encode()
    found, rejected, texts = prepared({"x.jsonl.gz": gzip.compress(lines)[:-9]})
    assert found["rejected"]["broken gzip (EOFError)"] == 1 and rejected[-1]["reason"].startswith("broken gzip")
    assert found["documents"] > 600 and texts[5].startswith("row 0 ")


@pytest.mark.parametrize(
    "text",
    [
        "Emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea and a flag",
        "مرحبا بالعالم 123، كيف الحال؟\n\u202bשלום עולם\u202c",
        "e\u0301 and \u00e9, ﬁ, \u200b, \u00a0 and \u2028\u3000 stay as they are",
        "\ufffd is no reason to leave a text out",
    ],
    ids=["emoji", "right-to-left", "combining", "replacement"],
)
def test_unusual_text_is_kept_to_the_character(prepared, text):
    found, rejected, texts = prepared({"x.jsonl": _lines({"text": text})})
    assert text in texts and found["documents"] == 6 and not rejected


def test_rows_left_out_by_a_rule_are_no_reason_to_refuse(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "x.jsonl").write_bytes(_lines({"text": "words and more words"}, {"text": "1 2 3 4 5"}))
    source = Text(LocalFiles({"kind": "local", "path": "in"}), 1.0, "text", None, 0.5)
    place = Workspace(lambda s: tmp_path / "in", lambda s: ["x.jsonl"], tmp_path / "out", lambda **fields: None)
    metrics = TextData({"a": source}, {}, "refuse", None, NOTHING_HELD_OUT).prepare(tokenizer, place)
    assert metrics["sources"]["a"]["left_out"] == {"mostly digits and punctuation": 1}
    assert metrics["rejected"] == 0


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match=r"data\.bad_rows='ignore' must be skip .* or refuse"):
        TextData({"a": None}, {}, "ignore", None, NOTHING_HELD_OUT)


@pytest.mark.slow
def test_one_document_of_50_megabytes(prepared):
    """Beside ordinary ones, with a part held out; tokens equal to the character."""
    draw = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in ("form", "list", "tree", "node") for b in ("", "s", "_x(", "):\n    ")])
    long = " ".join(words[draw.integers(0, len(words), 7_000_000)])
    assert len(long) > 50_000_000 - 5_000_000
    held_out = HeldOut(bytes=20, fraction=None, threshold=0.5, seed=1)
    found, rejected, texts = prepared({"x.txt": long.encode()}, held_out=held_out)
    assert not rejected and found["documents"] + found["held_out_documents"] == 6
    assert any(text == long for text in texts)


@pytest.fixture
def chatted(make_tokenizer, tmp_path):
    """As `prepared`, for conversations: (metrics of the source, rejected rows, ids of those trained on)."""

    def prepare(files, layout, bad_rows="skip", good=GOOD, template=CHATML):
        root, out = tmp_path / "in", tmp_path / f"out-{bad_rows}"
        for directory in (root, out):
            directory.mkdir(exist_ok=True)
        for name, data in {**good, **files}.items():
            (root / name).write_bytes(data)
        source = Chats(LocalFiles({"kind": "local", "path": "in"}), 1.0, layout)
        place = Workspace(
            lambda source: root, lambda source: sorted(p.name for p in root.iterdir()), out, lambda **fields: None
        )
        data = ChatData({"a": source}, bad_rows, None, NOTHING_HELD_OUT, template)
        metrics = data.prepare(make_tokenizer(None), place)
        ids = [json.loads(line) for line in (out / "a.ids.jsonl").open()]
        return metrics["sources"]["a"], [json.loads(line) for line in (out / "rejected.jsonl").open()], ids

    return prepare


AS_CHATS = {
    "mixed-schemas": ({"columns missing": 2, NOT_TEXT: 1, "not a JSON object": 1}, 3),  # a number can be said
    "one-word": ({}, 1),
}
"""What becomes of the same damages in conversations that say every text back, where it is not what documents become."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c == "one-word" else c for c in BAD])
def test_the_same_damages_in_conversations(chatted, case):
    files, *expected = BAD[case]
    reasons, num_good = AS_CHATS.get(case, expected)
    layout = PromptAndResponse("text", None, "text")
    found, rejected, ids = chatted(files, layout)
    assert found["rejected"] == reasons and len(rejected) == sum(reasons.values())
    assert len(ids) == found["documents"] == 5 + num_good
    if reasons:
        with pytest.raises(ValueError, match=rf"source 'a': {len(rejected)} of \d+ rows cannot be used"):
            chatted(files, layout, bad_rows="refuse")


SAID = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
GOOD_CHATS = {"good.jsonl": _lines(*({"messages": [{"role": "user", "content": f"{n}?"}, SAID[1]]} for n in range(5)))}
NO_FORM = "columns of no known form"
ODD = {
    "a-list-column-that-is-none": ({"prompt": "a", "completion": "b", "conversation": 17}, None),
    "history-of-another-type": (
        {"instruction": "a", "output": "b", "history": 3},
        "history is not a list of pairs",
    ),
    "messages-of-another-type": ({"messages": 5}, NO_FORM),
    "a-role-that-is-an-object": (
        {"messages": [{"role": {"a": 1}, "content": "x"}, SAID[1]]},
        "unknown role",
    ),
    "calls-of-another-type": ({"messages": [SAID[0], {**SAID[1], "tool_calls": 17}]}, BAD_CALLS),
    "content-of-another-type": ({"messages": [SAID[0], {**SAID[1], "content": {"n": 17}}]}, NOT_TEXT),
    "tools-with-half-a-character": ({"messages": SAID, "tools": [{"name": "\ud800"}]}, "invalid UTF-8"),
    "tools-with-bytes": ({"messages": SAID, "tools": [{"name": "f", "at": b"\xff"}]}, BAD_TOOLS),
    "tools-with-a-time": ({"messages": SAID, "tools": [{"name": "f", "at": datetime.datetime(2026, 1, 1)}]}, BAD_TOOLS),
}


@pytest.mark.parametrize("case", ODD)
def test_one_odd_conversation_does_not_end_the_preparation(chatted, case):
    row, reason = ODD[case]
    tables = case in ("tools-with-bytes", "tools-with-a-time")
    files = {"x.parquet": _parquet([row])} if tables else {"x.jsonl": _lines(row)}
    found, rejected, ids = chatted(files, ByColumns(ROLES), good=GOOD_CHATS)
    assert found["rejected"] == ({reason: 1} if reason else {}) and len(ids) == 5 + (reason is None)
    assert [(line["reason"], line["id"].split("#")[0]) for line in rejected] == [(reason, *files)] * bool(reason)


class _Failing:
    """A layout that fits no row, as a mistake in a config makes one."""

    def chat(self, row):
        return row.fields["messages"].strip()


def test_a_layout_that_fits_no_row_is_one_clear_error(chatted):
    with pytest.raises(ValueError, match=r"'a' is empty.*\{'not readable \(AttributeError\)': 5\}; the first is"):
        chatted({}, _Failing(), good=GOOD_CHATS)


LAST_USER = (
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for message in messages %}"
    "{% if tools and message == users[-1] %}{{ '<|im_start|>' + (tools | tojson) }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Puts the tools before the last turn of the user, as Mistral's does."""


FORBIDS = "{% if messages | length > 2 %}{{ raise_exception('One question only') }}{% endif %}"


def test_a_template_that_cannot_spell_some_conversations_leaves_those_out(chatted):
    tools, more = [{"type": "function", "function": {"name": "f"}}], [{"role": "user", "content": "And?"}, SAID[1]]
    rows = [{"messages": SAID, "tools": tools}, {"messages": SAID + more, "tools": tools}, {"messages": SAID + more}]
    found, rejected, ids = chatted({"x.jsonl": _lines(*rows)}, ByColumns(ROLES), good=GOOD_CHATS, template=LAST_USER)
    assert len(ids) == 8 and not rejected and not found["rejected"]
    found, rejected, ids = chatted(
        {"x.jsonl": _lines(*rows)}, ByColumns(ROLES), good=GOOD_CHATS, template=FORBIDS + LAST_USER
    )
    assert len(ids) == 6 and [line["id"] for line in rejected] == ["x.jsonl#1", "x.jsonl#2"]
    assert found["rejected"] == {"the chat template refuses it": 2}
    assert all(line["detail"].endswith("One question only") for line in rejected)
