import json
import math

import pytest
import torch

from pipeline.data.chat.conversations import Chats, PromptAndResponse
from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.template import TemplateSettings
from pipeline.evaluation.base import Workspace
from pipeline.evaluation.text.chat import HeldOutChat

CHATS = [
    [("user", "How many?"), ("assistant", "Zwölf 🙂."), ("user", "Sure?"), ("assistant", "Yes.")],
    [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!")],
    [("user", "Say <|im_end|>"), ("assistant", "No.")],
]


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture
def held_out(tmp_path):
    lines = (json.dumps({"id": str(i), "messages": messages(turns)}) + "\n" for i, turns in enumerate(CHATS))
    (tmp_path / "talk.heldout.jsonl").write_text("".join(lines))
    (tmp_path / "sources.json").write_text(json.dumps({"kind": "chat", "sources": {"talk": {}}}))
    return Workspace(lambda source: tmp_path, lambda source: [], tmp_path)


def benchmark(**changes):
    defaults = {"chats": None, "sources": None, "template": None, "window": 500, "max_items": None}
    return HeldOutChat(**{**defaults, "max_tokens": None, **changes})


def bits_by_hand(model, tokenizer, turns):
    tokens, mask = ChatEncoder(tokenizer).encode(messages(turns))
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([tokens.tolist()])).logits[0].double().log_softmax(-1)
    return -sum(float(logprobs[i - 1, tokens[i]]) for i in range(1, len(tokens)) if mask[i]) / math.log(2)


def test_the_assistants_turns_are_scored_and_nothing_else(llama, tokenizer, held_out):
    items = {item.id: item for item in benchmark().run(llama, tokenizer, held_out).items}
    assert set(items) == {"talk/0", "talk/1"}  # the third spells a special token
    for i, num_bytes in ((0, len("Zwölf 🙂.Yes.".encode())), (1, 3)):
        found = items[f"talk/{i}"]
        assert found.numerator == pytest.approx(bits_by_hand(llama, tokenizer, CHATS[i]), rel=1e-6)
        assert found.denominator == num_bytes


def test_exchanges_beyond_the_window_are_left_out_whole(llama, tokenizer, held_out):
    whole = len(ChatEncoder(tokenizer).encode(messages(CHATS[0]))[0])
    items = {item.id: item for item in benchmark(window=whole - 1).run(llama, tokenizer, held_out).items}
    assert items["talk/0"].numerator == pytest.approx(bits_by_hand(llama, tokenizer, CHATS[0][:2]), rel=1e-6)
    assert items["talk/0"].denominator == len("Zwölf 🙂.".encode())
    with pytest.raises(ValueError, match="no item"):
        benchmark(window=10).run(llama, tokenizer, held_out)


def test_the_artifacts_template_is_used(llama, tokenizer, held_out):
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant] {% endif %}"
    own = benchmark().run(llama, tokenizer, held_out)
    summary = {"kind": "chat", "sources": {"talk": {}}, "chat_template": template}
    (held_out.data / "sources.json").write_text(json.dumps(summary))
    recorded = benchmark().run(llama, tokenizer, held_out)
    assert recorded != own
    assert recorded == benchmark(template=template).run(llama, tokenizer, held_out)


def test_conversations_can_come_from_a_source_of_their_own(llama, tokenizer, inputs, local):
    rows = [{"q": f"What is {i} + 1?", "a": f"It is {i + 1}."} for i in range(6)]
    source = Chats(local("rows", rows), 1.0, PromptAndResponse("q", None, "a"))
    everything = benchmark(chats=source).run(llama, tokenizer, inputs).items
    assert len(everything) == 6
    assert benchmark(chats=source, max_items=2).run(llama, tokenizer, inputs).items == everything[:2]


DATED = (
    "{{ strftime_now('%d %b %Y') + (mood or '') }}{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.reasoning_content or '') + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "rain"}}]
CALLED = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "rain", "arguments": {"a": "b"}}}]},
    {"role": "tool", "content": "yes"},
    {"role": "assistant", "content": "It does.", "reasoning_content": "Wet."},
]


def test_tools_calls_reasoning_options_and_the_date_are_given_as_in_training(llama, tokenizer, held_out):
    chat = {"id": "0", "messages": CALLED, "tools": TOOLS, "options": {"mood": "glad"}}
    (held_out.data / "talk.heldout.jsonl").write_text(json.dumps(chat) + "\n")
    kept = {"chat_template": DATED, "chat_date": "2025-02-03", "chat_template_options": {"mood": "sad"}}
    (held_out.data / "sources.json").write_text(json.dumps({"kind": "chat", "sources": {"talk": {}}, **kept}))
    encoder = ChatEncoder(tokenizer, TemplateSettings(DATED, "2025-02-03", {"mood": "sad"}))
    ids, mask = encoder.encode(CALLED, TOOLS, {"mood": "glad"})
    assert tokenizer.decode(ids).startswith("03 Feb 2025gladrain")
    (item,) = benchmark().run(llama, tokenizer, held_out).items
    learned = tokenizer.decode(ids[mask == 1])
    call = '{"name": "rain", "arguments": {"a": "b"}}'
    assert learned == f"{call}<|im_end|>Wet.It does.<|im_end|>"
    assert item.denominator == len('rain", "arguments": {"a": "b') + len("Wet.It does.")
    other = benchmark(date="2026-01-01").run(llama, tokenizer, held_out).items[0]
    assert other.numerator != item.numerator and other.denominator == item.denominator
