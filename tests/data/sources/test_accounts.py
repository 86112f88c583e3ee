"""Every key of a row is used, declared irrelevant or counted, whatever the row; nothing is lost or invented unsaid."""

from __future__ import annotations

import csv
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.chat.columns import ByColumns
from pipeline.data.chat.conversations import Chat, Chats, MessageList, PromptAndResponse
from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.corpus import Bad
from pipeline.data.sources.documents import Document, LocalFiles, Text
from pipeline.data.sources.rows import Rejected, Row, Unused
from tests.data.chat.test_columns import LAYOUT, ROLES, WITH_TOOLS

LAST = "messages[] after the assistant's last"
DECLARED = ("id", "messages[].id")
ANY = ByColumns(ROLES, DECLARED)
BESIDE = ("tools", "functions", "system", "system_prompt", "chat_template_kwargs", "id", "score", "chosen", "history")
OF_A_MESSAGE = ("name", "reasoning_content", "tool_calls", "tool_call_id", "weight", "train", "masked", "id", "note",
                "train_detail", "function_call", "reasoning")  # fmt: skip


class _Draw:
    """Random rows in which every text is a mark of its own; `said` has the paths by which each may be counted."""

    def __init__(self, seed):
        self.random, self.said = random.Random(seed), {}

    def mark(self, *paths):
        mark = f"<{len(self.said)}>"
        self.said[mark] = {*paths}
        return mark

    def value(self, path):
        kind = self.random.choice(("text", "text", "null", "object", "list", "number"))
        if kind in ("text", "null"):
            return self.mark(path) if kind == "text" else None
        if kind == "number":
            number = 10**9 + len(self.said)
            self.said[str(number)] = {path}
            return number
        return {"a": self.mark(path), "b": None} if kind == "object" else [self.mark(path)]

    def call(self, path):
        call = {"name": self.mark(path), "arguments": {"x": self.mark(path), "gone": None}}
        if self.random.random() < 0.5:
            call = {"id": self.mark(path), "type": "function", "function": call}
        if self.random.random() < 0.3:
            call["index"] = self.mark(path, "messages[].tool_calls[].index")
        return call

    def message(self, role, keys):
        path, entry = "messages[].", {keys[0]: role, keys[1]: self.mark("messages[].content")}
        for key in self.random.sample(OF_A_MESSAGE, self.random.choice((0, 0, 1, 2))):
            if key in ("weight", "train", "masked"):
                entry[key] = self.random.choice((0, 1, True, False, None))
            elif key in ("tool_calls", "function_call") and self.random.random() < 0.7:
                call = self.call(f"{path}{key}")
                entry[key] = [call] if key == "tool_calls" else call
            else:
                entry[key] = self.value(path + key)
        return entry

    def row(self):
        turns = ("system", "user", "assistant", "user", "assistant", "user")[self.random.choice((0, 1)) :]
        keys = self.random.choice((("role", "content"), ("from", "value")))
        form = self.random.choice(("list", "list", "pair"))
        if form == "list":
            listed = [self.message(role, keys) for role in turns[: self.random.choice((3, 5, 6))]]
            row = {self.random.choice(("messages", "conversations")): listed}
        else:
            row = {key: self.value(key) for key in ("instruction", "input", "output")}
        for key in self.random.sample(BESIDE, self.random.choice((0, 1, 2, 3))):
            row[key] = self.value(key)
        return row


def _strings(value):
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [value]


def _spelled(chat):
    """What a conversation says, without the ids and with the calls' arguments."""
    value = json.loads(chat.to_json())
    return [str(text) for text in _strings({key: value[key] for key in value if key != "id"})]


def test_every_key_of_a_random_row_is_used_declared_or_counted():
    found = {Chat: 0, Rejected: 0}
    reasons = set()
    for seed in range(3000):
        draw = _Draw(seed)
        row = draw.row()
        result = ANY.chat(Row("r", row))
        found[type(result)] += 1
        if isinstance(result, Rejected):
            reasons.add(result.reason)
            continue
        said = "\n".join(_spelled(result))
        spelled, counted = json.dumps(row), {*result.unused, *DECLARED}
        for mark, paths in draw.said.items():
            if mark in spelled and mark not in said:
                assert paths & counted or (LAST in counted and _is_of_the_last(row, mark)), (row, mark, result)
        known = {*draw.said, "function", "False", *("system", "user", "assistant", "tool")}
        invented = [text for text in _spelled(result) if text not in known and not _is_joined(text, draw.said)]
        assert not invented, (row, invented)
        _check_learned(row, result)
    assert min(found.values()) > 500, found
    assert len(reasons) < 20, reasons


def _is_of_the_last(row, mark):
    listed = row.get("messages") or row.get("conversations") or []
    return bool(listed) and mark in json.dumps(listed[-1])


def _is_joined(text, said):
    return all(part in said for part in text.split("\n\n"))


def _check_learned(row, chat):
    """Marks of what is learned come out as `learned`, for the assistant's turns alone."""
    listed = row.get("messages") or row.get("conversations") or []
    own = [entry for entry in listed if entry.get("role", entry.get("from")) == "assistant"]
    expected = [entry.get("weight") in (0,) or entry.get("train") in (0,) or entry.get("masked") == 1 for entry in own]
    turns = [message for message in chat.messages if message["role"] == "assistant"]
    if own:
        assert [turn.get("learned") is False for turn in turns] == expected[: len(turns)]
    assert not any("learned" in message for message in chat.messages if message["role"] != "assistant")


def test_reasons_hold_nothing_of_the_rows():
    bad = Bad()
    rows = [{"messages": [{"role": f"role {n}", "content": "a"}]} for n in range(3000)]
    rows += [{f"column {n}": n} for n in range(300)] + [{"prompt": "a", "completion": [n]} for n in range(300)]
    rows += [{"messages": [{"role": "assistant", "content": "a", "weight": n / 7}]} for n in range(1, 7)]
    for number, row in enumerate(rows):
        bad.add("a", ANY.chat(Row(f"x#{number}", row)))
    assert bad.rejected == {
        "unknown role": 3000,
        "columns of no known form": 300,
        "a value that is not text": 300,
        "a training flag that is neither 0 nor 1": 6,
    }
    for number in range(3000):
        bad.add("a", Rejected("x", f"a reason of its own {number}"))
        bad.ignore(Unused("x", (f"key {number}", "\ud83d" * 100)))
    assert len(bad.rejected) == 201 and bad.rejected["other reasons"] == 3000 + 4 - 200
    assert len(bad.ignored_keys) == 201 and bad.ignored_keys.total() == 6000
    assert bad.describe().encode() and all(key.encode() for key in bad.ignored_keys)


KEYS = ("town", "pier", "day", "count", "where")


def _full_row(text):
    row = _text_arguments(list(_tool_rows(0, share=1.0)), text)[0]
    return {**row, "chat_template_kwargs": {"enable_thinking": True}}


def _tool_rows(seed, share=0.5):
    """Rows of a few tools, each with its own arguments; objects name their keys in one order, as a table must."""
    draw = random.Random(seed)
    kinds = {"town": "Bern", "pier": 3, "day": "Monday", "count": 1.5, "where": {"x": 1, "y": [1, None]}}
    for number in range(30):
        names = [key for key in KEYS if draw.random() < share]
        call = {"name": f"f{number % 3}", "arguments": {key: kinds[key] for key in names}}
        if number % 4 == 0:
            call["arguments"] = json.dumps({"town": None, **call["arguments"]})
        called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}
        properties = {key: {"type": "string", **({"default": 1} if key == "pier" else {})} for key in names}
        tool = {"type": "function", "function": {"name": f"f{number % 3}", "parameters": {"properties": properties}}}
        last = {"role": "assistant", "content": f"So {number}.", **({"weight": 0} if number % 5 == 1 else {})}
        more = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes.", "name": "Bo"}]
        result = {"role": "tool", "content": "ok", **({"tool_call_id": "1"} if number % 2 else {})}
        row = {"messages": [{"role": "user", "content": f"{number}?"}, called, result, last, *more]}
        yield {**row, "tools": [tool]} if names else {**row, "chat_template_kwargs": {"enable_thinking": True}}


def _text_arguments(rows, text):
    """The rows whose arguments are JSON text, or those whose are objects: a column of a table has one type."""
    return [
        row for row in rows if isinstance(row["messages"][1]["tool_calls"][0]["function"]["arguments"], str) == text
    ]


def _read(root, name, layout=LAYOUT):
    place = (lambda source: root, lambda source: [name])
    return list(Chats(LocalFiles({"kind": "local", "path": "x"}), 1.0, layout).read(*place))


@pytest.mark.parametrize("text", [False, True], ids=["objects", "text"])
@pytest.mark.parametrize("seed", range(5))
def test_a_table_and_json_lines_of_the_same_rows_give_the_same_tokens(make_tokenizer, tmp_path, seed, text):
    rows = _text_arguments(list(_tool_rows(seed)), text)
    # A row with every key comes first, so that the table's objects have their keys in the order of the rows'.
    pq.write_table(pa.Table.from_pylist([_full_row(text), *rows]).slice(1), tmp_path / "x.parquet")
    with_nulls = pq.read_table(tmp_path / "x.parquet").to_pylist()
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "y.jsonl").write_text("\n".join(map(json.dumps, with_nulls)))
    encoder = ChatEncoder(make_tokenizer(WITH_TOOLS))
    spelled = {}
    for name in ("x.jsonl", "x.parquet", "y.jsonl"):
        chats = [item for item in _read(tmp_path, name) if isinstance(item, Chat)]
        assert len(chats) == len(rows)
        tokens = [encoder.encode(chat.messages, chat.tools) for chat in chats]
        spelled[name] = [(ids.tolist(), mask.tolist(), chat.messages, chat.options)
                         for (ids, mask), chat in zip(tokens, chats, strict=True)]  # fmt: skip
        noted = [item for item in _read(tmp_path, name) if not isinstance(item, Chat)]
        assert not noted if name != "y.jsonl" else {key for item in noted for key in item.keys} <= {
            "null inside tools", "null inside tool_calls", "null inside chat_template_kwargs",
        }  # fmt: skip
    assert spelled["x.parquet"] == spelled["x.jsonl"] == spelled["y.jsonl"]
    arguments = [chat.messages[1]["tool_calls"][0]["function"]["arguments"] for chat in chats]
    assert any({"x": 1, "y": [1, None]} in values.values() for values in arguments)
    assert any(None in values.values() for values in arguments) == text  # said in JSON text, where no table adds any


def test_nulls_of_json_lines_inside_a_call_are_counted(tmp_path):
    call = {"name": "f", "arguments": {"pier": None, "deep": [{"a": None, "b": 1}]}}
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": said, "tools": [{"name": "f", "strict": None}]}))
    chat, unused = _read(tmp_path, "x.jsonl")
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"deep": [{"b": 1}]}
    assert unused.keys == ("null inside tool_calls", "null inside tool_calls", "null inside tools")


def test_csv_gives_what_json_lines_give(tmp_path):
    rows = [{"messages": json.dumps(row["messages"]), "tools": json.dumps(row.get("tools", []))}
            for row in _text_arguments(list(_tool_rows(1)), True)]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, ["messages", "tools"], delimiter="\t")
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "x.tsv").write_text(text.getvalue())
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = [[(c.messages, c.tools) for c in _read(tmp_path, name)] for name in ("x.tsv", "x.jsonl")]
    assert said[0] == said[1] and len(said[0]) == len(rows)


@pytest.mark.parametrize(
    "layout",
    [ANY, MessageList("messages", "role", "content", ROLES, DECLARED)],
    ids=["by-columns", "named"],
)
def test_unknown_keys_are_counted_by_path_and_declared_ones_are_not(tmp_path, layout):
    part = {"type": "text", "text": "a", "cache": 1}
    messages = [{"role": "user", "content": [part], "id": 1, "mood": "bad"}, {"role": "assistant", "content": "b"}]
    row = {"id": "x", "messages": messages + messages[:1], "score": 0, "nothing": None}
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps(row)] * 3))
    items = _read(tmp_path, "x.jsonl", layout)
    bad = Bad()
    for item in items:
        if isinstance(item, Unused):
            bad.ignore(item)
    assert [type(item) for item in items] == [Chat, Unused] * 3
    assert bad.ignored_keys == {
        "score": 3, "messages[].mood": 6, "messages[].content[].cache": 6, LAST: 3,
    }  # fmt: skip


def test_a_named_pair_counts_what_it_does_not_read():
    row = {"q": "a", "a": "b", "history": [["c", "d"]], "system": "Be brief."}
    chat = PromptAndResponse("q", None, "a").chat(Row("r", row))
    assert chat.unused == ("history",) and chat.messages[0] == {"role": "system", "content": "Be brief."}


def test_columns_beside_a_text_are_counted(tmp_path):
    rows = [{"doc": {"text": f"words {n}", "page": n}, "url": "u", "none": None} for n in range(3)] + [{"doc": 1}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Text(LocalFiles({"kind": "local", "path": "x"}), 1.0, "doc.text", None, None)
    items = list(source.read(lambda s: tmp_path, lambda s: ["x.jsonl"]))
    assert [type(item) for item in items] == [Document, Unused] * 3 + [Rejected]
    assert items[1] == Unused("x.jsonl#0", ("doc.page", "url"))
