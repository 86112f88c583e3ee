"""Messages out of the forms in the wild: what is learned, reasoning, names, calls, and values that are no text."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from pipeline.data.chat.conversations import Chat, PromptAndResponse
from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.messages import BAD_CALLS, BAD_TOOLS, NOT_TEXT
from pipeline.data.sources.rows import Rejected, Row
from tests.data.chat.test_columns import LAYOUT

USER = {"role": "user", "content": "a"}
ALPACA = (LAYOUT, PromptAndResponse("instruction", "input", "output"))
FLAG = "a training flag that is neither 0 nor 1"


def _chat(*messages, **columns):
    return LAYOUT.chat(Row("r", {"messages": list(messages), **columns}))


def _said(**keys):
    return {"role": "assistant", "content": "b", **keys}


def _last(found):
    assert isinstance(found, Chat), found
    return found.messages[-1]


NO = ({"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": "false"}, {"loss": 0}, {"loss_weight": 0.0},
      {"masked": True}, {"weight": 0, "train": False})  # fmt: skip


@pytest.mark.parametrize("no", NO, ids=str)
def test_a_turn_that_is_marked_so_is_context_only(tokenizer, no):
    chat = _chat(USER, _said(**no), USER, _said(content="learned"))
    assert [message.get("learned") for message in chat.messages] == [None, False, None, None] and not chat.unused
    assert Chat.from_json(chat.to_json()) == chat
    ids, mask = ChatEncoder(tokenizer).encode(chat.messages)
    plain, _ = ChatEncoder(tokenizer).encode(_chat(USER, _said(), USER, _said(content="learned")).messages)
    assert tokenizer.decode(ids[mask == 1]) == "learned<|im_end|>" and ids.tolist() == plain.tolist()
    assert _chat(USER, _said(**no)).reason == "no assistant turn to train on"


@pytest.mark.parametrize("yes", [{"weight": 1}, {"weight": 1.0}, {"train": True}, {"masked": False}, {"weight": None}])
def test_a_turn_that_is_marked_as_learned_is_as_one_without_a_mark(yes):
    assert _last(_chat(USER, _said(**yes))) == {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"weight": 0.5}, FLAG),
        ({"weight": -1}, FLAG),
        ({"weight": float("nan")}, FLAG),
        ({"train": "maybe"}, FLAG),
        ({"train": [True]}, FLAG),
        ({"weight": 1, "train": False}, "contradicting training flags"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
         "only part of a message is to be trained on"),
        ({"reasoning": "x", "thinking": "y"}, "a message with two different reasonings"),
        ({"reasoning_content": ["x"]}, NOT_TEXT),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, BAD_CALLS),
        ({"tool_calls": [{"name": "f", "arguments": "[1"}]}, BAD_CALLS),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, BAD_CALLS),
        ({"tool_calls": [{"name": "f", "parameters": {"x": 1}}]}, BAD_CALLS),
        ({"tool_calls": [{"name": "f", "arguments": '{"x": 1, "x": 2}'}]}, BAD_CALLS),
        ({"tool_calls": [{"name": "f", "arguments": {"x": float("inf")}}]}, BAD_CALLS),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "f"}, "name": "f"}]}, BAD_CALLS),
        ({"images": ["x.png"]}, "images, sound or video beside the text"),
        ({"content": {"text": "b"}}, NOT_TEXT),
        ({"content": ["b"]}, NOT_TEXT),
        ({"content": float("nan")}, NOT_TEXT),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_be_guessed_is_rejected_with_its_reason(keys, reason):
    found = _chat(USER, _said(**keys))
    assert isinstance(found, Rejected) and found.reason == reason and found.detail


def test_marks_on_other_turns_teach_nothing_and_are_counted_if_they_ask_for_it():
    chat = _chat({**USER, "weight": 0, "train": False}, _said(), {**USER, "train": True}, _said())
    assert chat.unused == ("messages[].train",)
    assert not any("learned" in message for message in chat.messages)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_names_and_ids_are_kept(key):
    called = _said(content=None, tool_calls=[{"id": 7, "function": {"name": "f", "arguments": ""}}], **{key: " so\n"})
    chat = _chat({**USER, "name": "Bo"}, called, {"role": "tool", "content": 4, "tool_call_id": "7"}, _said())
    assert chat.messages[0] == {**USER, "name": "Bo"}
    assert chat.messages[1]["reasoning_content"] == " so\n"
    call = {"id": "7", "type": "function", "function": {"name": "f", "arguments": {}}}
    assert chat.messages[1]["tool_calls"] == [call]
    assert chat.messages[2] == {"role": "tool", "content": "4", "tool_call_id": "7"} and not chat.unused
    assert Chat.from_json(chat.to_json()) == chat


def test_openais_older_names_of_tools():
    function = {"name": "f", "parameters": {}}
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": null}'}}
    chat = _chat(USER, called, {"role": "function", "name": "f", "content": "4"}, _said(), functions=[function])
    assert chat.tools == ({"type": "function", "function": function},)
    assert chat.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": None}}
    assert chat.messages[2] == {"role": "tool", "content": "4", "name": "f"} and not chat.unused


def test_nulls_that_fill_up_a_table_of_two_forms_say_nothing():
    keys = ("role", "from", "content", "value", "weight", "train", "tool_calls", "name", "reasoning_content", "foo")
    nothing = dict.fromkeys(keys)
    said = [nothing | USER, nothing | {"from": "gpt", "value": "b"}]
    assert _chat(*said) == _chat(USER, _said()) and not _chat(*said).unused


def test_messages_and_tools_as_json_text_keep_their_nulls():
    tools = [{"name": "f", "parameters": {"x": {"default": None}}}]
    call = {"name": "f", "arguments": {"x": None}}
    said = [USER, _said(tool_calls=[call])]
    for given in (json.dumps(tools), [json.dumps(tool) for tool in tools]):
        chat = LAYOUT.chat(Row("r", {"messages": json.dumps(said), "tools": given}))
        assert chat.tools == tuple(tools)
        assert chat.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"x": None} and not chat.unused
    broken = LAYOUT.chat(Row("r", {"messages": str(said)}))
    assert (
        broken.reason == "columns of no known form"
        and "neither a list of messages nor the same as JSON" in broken.detail
    )


def test_options_of_the_chat_template():
    chat = _chat(USER, _said(), chat_template_kwargs={"enable_thinking": False, "date": None})
    assert chat.options == {"enable_thinking": False} and Chat.from_json(chat.to_json()) == chat
    assert _chat(USER, _said(), chat_template_kwargs='{"a": 1}').options == {"a": 1}
    for options in ({"tokenize": True}, {"chat_template": "x"}, 3, [{}, {}]):
        assert _chat(USER, _said(), chat_template_kwargs=options).reason.startswith("chat_template_kwargs")


@pytest.mark.parametrize(
    "layout", [LAYOUT, PromptAndResponse("instruction", "input", "output")], ids=["columns", "named"]
)
@pytest.mark.parametrize(
    ("value", "text"),
    [(17, "17"), (0, "0"), (1.5, "1.5"), (-0.0, "-0.0"), (1e30, "1e+30"), (True, "true"), (False, "false"),
     (Decimal("1.50"), "1.50"), ("x", "x")],
)  # fmt: skip
def test_numbers_of_an_alpaca_row_are_said(layout, value, text):
    chat = layout.chat(Row("r", {"instruction": "Do.", "input": value, "output": value}))
    assert [message["content"] for message in chat.messages] == [f"Do.\n\n{text}", text]


@pytest.mark.parametrize(
    "layout", [LAYOUT, PromptAndResponse("instruction", "input", "output")], ids=["columns", "named"]
)
@pytest.mark.parametrize("value", [[1], [], ["a"], {"a": 1}, {}, float("nan"), b"x", Decimal("NaN")])
def test_lists_and_objects_of_an_alpaca_row_are_rejected_and_named(layout, value):
    for column in ("instruction", "input", "output"):
        found = layout.chat(Row("r", {"instruction": "Do.", "input": "", "output": "b", column: value}))
        assert (found.reason, found.detail.split()[0]) == (NOT_TEXT, column)


def test_preferences_are_not_half_read():
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert LAYOUT.chat(Row("r", pair)).reason == "a preference pair, not a conversation"
    listed = {"conversations": [USER, _said(), USER], "chosen": _said(), "rejected": _said()}
    assert LAYOUT.chat(Row("r", listed)).reason == "a preference pair, not a conversation"
    unwanted = {"prompt": "a", "completion": "b", "label": False}
    assert LAYOUT.chat(Row("r", unwanted)).reason == "an answer marked as unwanted"
    assert LAYOUT.chat(Row("r", {**unwanted, "label": True})).unused == ()
    assert _chat(USER, _said(), chosen="b", rejected="c").unused == ("chosen", "rejected")


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_column_of_the_system_message(name):
    pair = {"question": "a", "response": "b", name: "Be brief."}
    assert LAYOUT.chat(Row("r", pair)).messages[0] == {"role": "system", "content": "Be brief."}
    own = {"role": "system", "content": "Be long."}
    assert _chat(own, USER, _said(), **{name: "Be brief."}).unused == (name,)
    assert _chat(own, USER, _said(), **{name: "Be long."}).unused == ()


def test_images_beside_a_conversation_reject_it_unless_declared():
    row = Row("r", {"messages": [USER, _said()], "images": [b"x"]})
    assert LAYOUT.chat(row).reason == "images, sound or video beside the text"
    assert isinstance(type(LAYOUT)(LAYOUT.roles, ["images"]).chat(row), Chat)
    assert LAYOUT.chat(Row("r", {**row.fields, "images": []})).unused == ("images",)


def test_tools_that_json_cannot_spell():
    assert _chat(USER, _said(), tools=[{"name": "f", "x": float("nan")}]).reason == BAD_TOOLS
