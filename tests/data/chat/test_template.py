"""Which chat template renders, with what date: the same in training, validation, evaluation and the saved model."""

from __future__ import annotations

import json
import pickle
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from pipeline.data.chat.conversations import Chat
from pipeline.data.chat.encoder import ChatEncoder, UnfitChatError
from pipeline.data.chat.template import DATE, ChatTemplate, TemplateSettings
from pipeline.data.chats import ChatData
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Workspace, read_sources
from pipeline.data.prepared import keep_chat_template, unused, validation_rows

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + ', ' + date_string + '<|im_end|>\n' }}" + CHATML
TOOLS = "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}" + CHATML
NAMED = {"default": CHATML, "tool_use": TOOLS, "loud": CHATML.replace("m.content", "m.content | upper")}
CHAT = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
TOOL = {"type": "function", "function": {"name": "rain", "description": "Looks.", "parameters": {"type": "object"}}}


class _Today(datetime):
    """A clock that stands at a day of one's choice."""

    day = "2026-01-01"

    @classmethod
    def now(cls, tz=None):
        return datetime.strptime(cls.day, "%Y-%m-%d")


def test_the_date_is_the_settings_and_never_todays(make_tokenizer_of, monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", _Today)
    tokenizer = make_tokenizer_of(DATED, "<|im_end|>")
    assert "01 Jan 2026" in tokenizer.apply_chat_template(CHAT, tokenize=False, date_string="")
    assert "Today: 26 Jul 2024, 26 Jul 2024" in ChatTemplate(tokenizer).render(CHAT)
    other = ChatEncoder(tokenizer, TemplateSettings(date="2025-02-03"))
    monkeypatch.setattr(_Today, "day", "2027-09-09")
    assert "Today: 03 Feb 2025, 03 Feb 2025" in other.template.render(CHAT)
    assert "03 Feb 2025" in tokenizer.decode(other.prompt(CHAT[:1]))
    assert ChatTemplate(tokenizer).date == DATE


@pytest.mark.parametrize("date", ["today", "26 Jul 2024", "2024-13-01", 20240726])
def test_a_date_of_another_form_is_refused(date):
    with pytest.raises(ValueError, match="must be a date such as 2024-07-26"):
        TemplateSettings(date=date)
    with pytest.raises(ValueError, match="template_options name messages, tools"):
        TemplateSettings(options={"tools": 1, "messages": 2})


def test_what_is_rendered_is_what_transformers_renders(make_tokenizer_of):
    thinking = CHATML.replace("m.content +", "(m.thinking or '') + (m.reasoning_content or '') + m.content +")
    chat = [*CHAT[:1], {**CHAT[1], "reasoning_content": "One.", "name": None}]
    for template in (CHATML, TOOLS, thinking, "{{ bos_token + messages[0].content | tojson }}"):
        tokenizer = make_tokenizer_of(template, "<|im_end|>")
        for prompt in (False, True):
            expected = tokenizer.apply_chat_template(chat, [TOOL], add_generation_prompt=prompt, tokenize=False)
            assert ChatTemplate(tokenizer).render(chat, [TOOL], prompt=prompt) == expected


def test_an_encoder_can_be_sent_to_another_process(make_tokenizer_of):
    encoder = ChatEncoder(make_tokenizer_of(DATED, "<|im_end|>"), TemplateSettings(date="2025-02-03"))
    sent = pickle.loads(pickle.dumps(encoder))  # noqa: S301 (our own)
    assert all(np.array_equal(a, b) for a, b in zip(encoder.encode(CHAT), sent.encode(CHAT), strict=True))


def test_named_templates_are_chosen_as_transformers_chooses(make_tokenizer_of):
    tokenizer = make_tokenizer_of(NAMED, "<|im_end|>")
    template = ChatTemplate(tokenizer)
    for tools in ((), (TOOL,)):
        expected = tokenizer.apply_chat_template(CHAT, list(tools) or None, tokenize=False)
        assert template.render(CHAT, tools) == expected and ("rain" in expected) == bool(tools)
    loud = ChatTemplate(tokenizer, "loud")
    assert "HOW?" in loud.render(CHAT) and "HOW?" in loud.render(CHAT, [TOOL])
    assert loud.text == {**NAMED, "default": NAMED["loud"], "tool_use": NAMED["loud"]}


def test_named_templates_without_a_default(make_tokenizer_of):
    tokenizer = make_tokenizer_of({"loud": NAMED["loud"], "rag": CHATML}, "<|im_end|>")
    with pytest.raises(ValueError, match="set `template` to one of loud, rag"):
        ChatEncoder(tokenizer)
    assert "HOW?" in ChatTemplate(tokenizer, "loud").render(CHAT)
    with pytest.raises(ValueError, match=r"neither Jinja nor the name .* \(it has loud, rag\)"):
        ChatTemplate(tokenizer, "chat.txt")
    with pytest.raises(UnfitChatError, match="no chat template for a conversation without tools"):
        ChatTemplate(make_tokenizer_of({"tool_use": TOOLS}, "<|im_end|>")).render(CHAT)


@pytest.mark.parametrize("asked", [None, "loud", DATED])
def test_a_saved_model_is_loaded_with_what_it_was_tuned_with(make_tokenizer_of, tmp_path, asked):
    tokenizer, data, model = make_tokenizer_of(NAMED, "<|im_end|>"), tmp_path / "data", tmp_path / "model"
    template = ChatTemplate(tokenizer, asked)
    data.mkdir()
    (data / "sources.json").write_text(json.dumps({"kind": "chat", "sources": {}, **template.record()}))
    tokenizer.save_pretrained(model)
    keep_chat_template(data, tokenizer, model)
    loaded = PreTrainedTokenizerFast.from_pretrained(model)
    assert loaded.chat_template == template.text
    for tools in ((), (TOOL,)):
        assert ChatTemplate(loaded).render(CHAT, tools) == template.render(CHAT, tools)


class _Eight:
    """A source of eight conversations, of which one has reasoning."""

    weight = 1.0

    def read(self, locate, listing):
        for number in range(8):
            answer = CHAT[1] if number else {**CHAT[1], "reasoning_content": "One."}
            yield Chat(str(number), ({"role": "user", "content": f"How {number}?"}, answer))


@pytest.fixture
def prepared(make_tokenizer_of, tmp_path):
    """Prepares chats with a template and gives (metrics, directory, tokenizer)."""

    def prepare(template, **settings):
        tokenizer, out = make_tokenizer_of(DATED + "".join(NAMED.values()), "<|im_end|>"), tmp_path / "out"
        tokenizer.chat_template = NAMED
        out.mkdir(exist_ok=True)
        (tmp_path / "chat.jinja").write_text(DATED)
        place = Workspace(lambda source: tmp_path / source["path"], lambda source: [], out, lambda **_: None)
        held = HeldOut(bytes=20, fraction=None, threshold=0.5, seed=1)
        data = ChatData({"a": _Eight()}, "refuse", None, held, template, **settings)
        return data.prepare(tokenizer, place), out, tokenizer

    return prepare


def test_a_template_by_path_its_date_and_options_are_recorded_and_used_again(prepared):
    _, out, tokenizer = prepared({"kind": "local", "path": "chat.jinja"}, date="2025-02-03", template_options={"x": 1})
    summary = read_sources(out)
    assert (summary["chat_template"], summary["chat_date"]) == (DATED, "2025-02-03")
    assert summary["chat_template_options"] == {"x": 1}
    rows = validation_rows(out, tokenizer, 64, 1000)["a"]
    assert rows and all("03 Feb 2025" in tokenizer.decode(row["input_ids"]) for row in rows)
    again = ChatEncoder(tokenizer, TemplateSettings.recorded(summary))
    held = [json.loads(line) for line in (out / "a.heldout.jsonl").open()]
    for row, chat in zip(rows, held, strict=True):
        ids, _ = again.encode(chat["messages"])
        assert np.asarray(row["input_ids"])[: len(ids)].tolist() == ids.tolist()


def test_reasoning_that_a_template_leaves_out_is_counted(prepared):
    metrics, out, _ = prepared("default")
    assert metrics["sources"]["a"]["reasoning_left_out"] == 1
    assert unused(out)["reasoning_left_out"] == {"a": 1}
    known = CHATML.replace("m.content +", "(m.reasoning_content or '') + m.content +")
    metrics, out, _ = prepared(known)
    assert metrics["sources"]["a"]["reasoning_left_out"] == 0 and "reasoning_left_out" not in unused(out)


def test_a_template_that_closes_no_turn_is_used_with_a_warning(prepared):
    with pytest.warns(UserWarning, match="ends an assistant's turn with no special token"):
        metrics, *_ = prepared("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    assert metrics["documents"] and not metrics["rejected"]


def test_a_path_that_is_no_text_is_refused(prepared):
    with pytest.raises(ValueError, match="cannot be read as UTF-8 text"):
        prepared({"kind": "local", "path": str(Path(".").absolute())})
