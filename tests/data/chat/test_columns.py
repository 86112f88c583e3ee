"""Conversations told apart by their columns, with system turns and tools kept to the token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipeline.data.chat.columns import ByColumns
from pipeline.data.chat.conversations import Chat, Chats
from pipeline.data.chat.encoder import ChatEncoder, UnfitChatError
from pipeline.data.chat.messages import BAD_TOOLS, NOT_TEXT
from pipeline.data.chats import ChatData
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Workspace
from pipeline.data.sources.documents import LocalFiles
from pipeline.data.sources.rows import Rejected, Row

CONF = Path(__file__).parents[3] / "conf" / "data" / "local_chat.yaml"
ROLES = yaml.safe_load(CONF.read_text())["sources"]["local"]["layout"]["roles"]
LAYOUT = ByColumns(ROLES)
ASKED = [("user", "Add.\n\n1 2"), ("assistant", "3")]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"name": "weather", "arguments": {"city": "Bern"}}
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _read(fields):
    return LAYOUT.chat(Row("r", fields))


def _contents(chat):
    assert isinstance(chat, Chat), chat
    return [(message["role"], message["content"]) for message in chat.messages]


FORMS = {
    "messages": {"messages": [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Add.\n\n1 2"}, {"from": "gpt", "value": "3"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Add.\n\n1 2"}]},
                           {"role": "assistant", "content": "3"}, {"role": "user", "content": "?"}]},
    "alpaca": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "alpaca-no-input": {"instruction": "Add.\n\n1 2", "input": "", "output": "3"},
    "dolly": {"instruction": "Add.", "context": "1 2", "response": "3", "category": "math"},
    "prompt-completion": {"prompt": "Add.\n\n1 2", "completion": " 3"},
    "prompt-completion-messages": {"prompt": [{"role": "user", "content": "Add.\n\n1 2"}],
                                   "completion": [{"role": "assistant", "content": "3"}]},
    "question-answer": {"question": "Add.\n\n1 2", "answer": "3"},
    "query-response": {"query": "Add.\n\n1 2", "response": "3", "type": "MATH"},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_conversation(form):
    assert _contents(_read(FORMS[form])) == ASKED


def test_a_table_of_mixed_forms_holds_nothing_in_the_columns_of_others():
    nothing = dict.fromkeys(("messages", "instruction", "input", "output", "prompt", "completion", "tools", "system"))
    for form in ("messages", "alpaca", "prompt-completion"):
        assert _contents(_read(nothing | FORMS[form])) == ASKED
    assert _read(nothing).reason == "empty"


def test_system_and_history_columns_are_kept():
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    expected = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), *ASKED]
    assert _contents(_read(row)) == expected
    listed = {"conversations": FORMS["sharegpt"]["conversations"], "system": "Be brief."}
    assert _contents(_read(listed)) == [("system", "Be brief."), *ASKED]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "raw"}, "columns of no known form"),
        ({"messages": ["a", "b"]}, "columns of no known form"),
        ({"messages": []}, "empty"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "bing", "value": "b"}]}, "unknown role"),
        ({"prompt": "a", "completion": None}, "empty"),
        ({"prompt": ["a"], "completion": "a"}, NOT_TEXT),
        ({"instruction": "a", "output": "b", "input": "", "history": ["x"]}, "history is not a list of pairs"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "b"}]},
         NOT_TEXT),
        ({"prompt": "a", "completion": "b", "tools": "{broken"}, BAD_TOOLS),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"},
                       {"role": "assistant", "content": "c"}]}, "turns do not alternate"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_rejected_with_a_reason(fields, reason):
    found = _read(fields)
    assert isinstance(found, Rejected) and found.reason == reason and not found.by_rule


OPENAI = {
    "tools": [TOOL],
    "messages": [
        {"role": "system", "content": "Look things up."},
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "type": "function", "function": {**CALL, "arguments": '{"city": "Bern"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "Yes."},
    ],
}  # fmt: skip
SHAREGPT = {
    "tools": json.dumps([TOOL]),
    "system": "Look things up.",
    "conversations": [
        {"from": "human", "value": "Is it raining?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Yes."},
    ],
}


@pytest.mark.parametrize("fields", [OPENAI, SHAREGPT], ids=["openai", "sharegpt"])
def test_tools_calls_and_results_are_kept_and_calls_are_learned(make_tokenizer, fields):
    chat = _read(fields)
    assert chat.tools == (TOOL,) and Chat.from_json(chat.to_json()) == chat
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["tool_calls"][0]["function"] == CALL
    tokenizer = make_tokenizer(WITH_TOOLS)
    ids, mask = ChatEncoder(tokenizer).encode(chat.messages, chat.tools)
    said, learned = tokenizer.decode(ids), tokenizer.decode(ids[mask == 1])
    assert learned == f"<tool_call>{json.dumps(CALL)}</tool_call><|im_end|>Yes.<|im_end|>"
    assert "# Tools" in said and "Look things up." in said and "<|im_start|>tool\nrain" in said


def test_a_template_that_would_lose_something_is_not_used_in_silence(make_tokenizer):
    chat = _read(OPENAI)
    without_calls = WITH_TOOLS.replace("<tool_call>{{ call.function | tojson }}</tool_call>", "")
    cases = {
        "leaves out the tools": WITH_TOOLS.replace("{{ tool | tojson }}", ""),
        "leaves out a tool call": without_calls,
        "leaves out a message of the system": WITH_TOOLS.replace(
            "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
        ),
        "refuses it": "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + WITH_TOOLS,
    }
    for reason, template in cases.items():
        with pytest.raises(UnfitChatError, match=reason):
            ChatEncoder(make_tokenizer(template)).encode(chat.messages, chat.tools)


def test_a_tool_cannot_smuggle_in_a_turn(make_tokenizer):
    chat = _read({**OPENAI, "tools": [{"function": {"name": "x<|im_end|>"}}]})
    with pytest.raises(UnfitChatError, match="spells a special token"):
        ChatEncoder(make_tokenizer(WITH_TOOLS)).encode(chat.messages, chat.tools)


def test_mixed_files_are_prepared_counted_or_refused(make_tokenizer, tmp_path):
    rows = [*FORMS.values(), OPENAI, {"text": "raw"}, {"prompt": "a", "completion": ""}]
    for directory in ("in", "skip", "refuse"):
        (tmp_path / directory).mkdir()
    (tmp_path / "in" / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{broken")
    source = Chats(LocalFiles({"kind": "local", "path": "in"}), 1.0, LAYOUT)
    held_out = HeldOut(bytes=0, fraction=None, threshold=0.5, seed=1)

    def prepare(policy):
        place = Workspace(lambda s: tmp_path / "in", lambda s: ["x.jsonl"], tmp_path / policy, lambda **fields: None)
        return ChatData({"a": source}, policy, None, held_out, None).prepare(make_tokenizer(WITH_TOOLS), place)

    found = prepare("skip")["sources"]["a"]
    assert found["rejected"] == {"columns of no known form": 1, "empty": 1, "invalid JSON": 1}
    assert found["documents"] == len(FORMS) + 1
    with pytest.raises(ValueError, match=r"source 'a': 3 of 14 rows cannot be used"):
        prepare("refuse")
