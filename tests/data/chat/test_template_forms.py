"""Chat templates of every form that models bring, and what of a conversation each has the model learn."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from pipeline.data.chat.encoder import ChatEncoder, UnfitChatError
from pipeline.data.chat.template import TemplateSettings

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST, SECOND = {"role": "user", "content": "How?"}, {"role": "user", "content": "And?"}
TWICE = [FIRST, {"role": "assistant", "content": "So."}, SECOND, {"role": "assistant", "content": "Thus."}]
THOUGHT = [
    FIRST,
    {"role": "assistant", "content": "So.", "reasoning_content": "One."},
    SECOND,
    {"role": "assistant", "content": "Thus.", "reasoning_content": "Two."},
]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}}
TOOL = {"type": "function", "function": {"name": "rain", "description": "Looks.", "parameters": PARAMETERS}}
CALL = {"id": "123456789", "type": "function", "function": {"name": "rain", "arguments": {"city": "Bern"}}}
CALLED = [
    FIRST,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": 'It "rains".', "name": "rain", "tool_call_id": "123456789"},
    {"role": "assistant", "content": "Yes."},
]


class Case(NamedTuple):
    """A template, its EOS, and what is learned of two exchanges, of two with reasoning, and of a call, where it can."""

    template: str
    eos: str
    twice: list[str]
    thought: list[str] | None = None
    called: list[str] | None = None


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only users and assistants') }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LAST_THOUGHT = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' and not "
    "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{% if m.tool_calls %}{{ '<|start|>assistant to=functions.' + m.tool_calls[0].function.name }}"
    "{{ '<|channel|>commentary<|message|>' + (m.tool_calls[0].function.arguments | tojson) + '<|call|>' }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}{{ '<|start|>functions.' + messages[loop.index0 - 1].tool_calls[0].function.name }}"
    "{{ ' to=assistant<|message|>' + (m.content | tojson) + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
SENTENCES = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'tool' %}{{ '<｜tool_output｜>' + m.content }}{% elif m.tool_calls %}{{ '<｜Assistant｜>' }}"
    "{% if m.content is none %}{% for call in m.tool_calls %}{{ '<｜tool_call｜>' + call.type + '<｜tool_sep｜>' }}"
    "{{ call.function.name + '\n' + call.function.arguments + '<｜tool_end｜>' }}{% endfor %}{% endif %}"
    "{{ '<｜end_of_sentence｜>' }}{% elif m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end_of_sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
ONLY_AT_THE_END = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}{# <|user|> #}"
)
UNCLOSED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content }}{% else %}"
    "{{ '<|assistant|>\n<think>' + (m.reasoning_content or '') + '</think>\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MODEL_ROLE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TOOLS_BEFORE_THE_LAST = (
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools and m == users[-1] %}"
    "{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('Ids have 9 characters') }}{% endif %}"
    "{{ dict(call.function, id=call.id) | tojson }}{% endfor %}{{ ']' + eos_token }}{% elif m.role == 'tool' %}"
    "{{ '[TOOL_RESULTS]' + ({'content': m.content} | tojson) + '[/TOOL_RESULTS]' }}{% else %}"
    "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{{ m.role | capitalize + ': ' }}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
OTHER_KEY = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning %}{{ '[THINK]' + m.reasoning + '[/THINK]' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
).replace("m.reasoning ", "m['reasoning'] ")
PROMPTED_THOUGHT = LAST_THOUGHT.replace(
    "'<|im_start|>assistant\n' }}",
    "'<|im_start|>assistant\n<think>\n' + ('\n</think>\n\n' if enable_thinking is false else '') }}",
)
ALWAYS_PROMPTED = (
    "{% for m in messages %}{{ '<|OPEN|><|' + m.role | upper + '|>' }}"
    "{{ ('<|START|>' + m.content + '<|STOP|>') if m.role == 'assistant' else m.content }}{{ '<|CLOSE|>' }}{% endfor %}"
    "{{ '<|OPEN|><|ASSISTANT|>' }}{# <|USER|> #}"
)
NO_PROMPT = CHATML.partition("{% if add_generation_prompt")[0]
ESCAPED = (
    "{% for m in messages %}{{ '<|im_start|>' + ({'role': m.role, 'text': m.content} | tojson(ensure_ascii=true)) }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}{% generation %}{{ '\n' }}"
    "{% if loop.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{% endgeneration %}"
    "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Counts the end of the header and a line end among what the model writes, as templates for training do."""
CASES = {
    "chatml": Case(CHATML, "<|im_end|>", ["So.<|im_end|>", "Thus.<|im_end|>"]),
    "llama 2": Case(LLAMA_2, "</s>", [" So. </s>", " Thus. </s>"]),
    "llama 3": Case(LLAMA_3, "<|end_of_text|>", ["So.<|eot_id|>", "Thus.<|eot_id|>"]),
    "thinking in the last turn": Case(
        LAST_THOUGHT,
        "<|im_end|>",
        ["So.<|im_end|>", "<think>\n\n</think>\n\nThus.<|im_end|>"],
        ["So.<|im_end|>", "<think>\nTwo.\n</think>\n\nThus.<|im_end|>"],
    ),
    "channels": Case(
        CHANNELS,
        "<|return|>",
        ["<|channel|>final<|message|>So.<|end|>", "<|channel|>final<|message|>Thus.<|return|>"],
        [
            "<|channel|>final<|message|>So.<|end|>",
            "<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>Thus.<|return|>",
        ],
        [
            ' to=functions.rain<|channel|>commentary<|message|>{"city": "Bern"}<|call|>',
            "<|channel|>final<|message|>Yes.<|return|>",
        ],
    ),
    "sentences": Case(
        SENTENCES,
        "<｜end_of_sentence｜>",
        ["So.<｜end_of_sentence｜>", "Thus.<｜end_of_sentence｜>"],
        ["So.<｜end_of_sentence｜>", "Thus.<｜end_of_sentence｜>"],
    ),
    "EOS only at the end": Case(ONLY_AT_THE_END, "<|endoftext|>", ["So.<|end|>", "Thus.<|end|>\n<|endoftext|>"]),
    "turns that nothing closes": Case(
        UNCLOSED,
        "<|endoftext|>",
        ["\n<think></think>\nSo.<|user|>", "\n<think></think>\nThus."],
        ["\n<think>One.</think>\nSo.<|user|>", "\n<think>Two.</think>\nThus."],
    ),
    "the role of a model": Case(MODEL_ROLE, "<eos>", ["So.<end_of_turn>", "Thus.<end_of_turn>"]),
    "tools before the last question": Case(
        TOOLS_BEFORE_THE_LAST,
        "</s>",
        [" So.</s>", " Thus.</s>"],
        None,
        ['[TOOL_CALLS][{"name": "rain", "arguments": {"city": "Bern"}, "id": "123456789"}]</s>', " Yes.</s>"],
    ),
    "parts": Case(PARTS, "<end_of_utterance>", [" So.<end_of_utterance>", " Thus.<end_of_utterance>"]),
    "another key": Case(
        OTHER_KEY,
        "<|im_end|>",
        ["So.<|im_end|>", "Thus.<|im_end|>"],
        ["[THINK]One.[/THINK]So.<|im_end|>", "[THINK]Two.[/THINK]Thus.<|im_end|>"],
    ),
    "a prompt to think": Case(
        PROMPTED_THOUGHT,
        "<|im_end|>",
        ["So.<|im_end|>", "</think>\n\nThus.<|im_end|>"],
        ["So.<|im_end|>", "Two.\n</think>\n\nThus.<|im_end|>"],
    ),
    "always a prompt": Case(
        ALWAYS_PROMPTED, "<|CLOSE|>", ["<|START|>So.<|STOP|><|CLOSE|>", "<|START|>Thus.<|STOP|><|CLOSE|>"]
    ),
    "never a prompt": Case(NO_PROMPT, "<|im_end|>", ["So.<|im_end|>", "Thus.<|im_end|>"]),
    "escaped": Case(ESCAPED, "<|im_end|>", ['So."}<|im_end|>', 'Thus."}<|im_end|>']),
    "generation blocks": Case(
        MARKED,
        "<|im_end|>",
        ["So.<|im_end|>", "<think>\n\n</think>\n\nThus.<|im_end|>"],
        ["So.<|im_end|>", "<think>\nTwo.\n</think>\n\nThus.<|im_end|>"],
    ),
}


@pytest.fixture(params=CASES)
def case(request, make_tokenizer_of):
    found = CASES[request.param]
    return found, make_tokenizer_of(found.template, found.eos, "<think>", "</think>")


def test_two_exchanges(case, learned_turns):
    found, tokenizer = case
    encoder = ChatEncoder(tokenizer)
    assert learned_turns(tokenizer, encoder, TWICE) == found.twice
    assert learned_turns(tokenizer, encoder, TWICE[:2]) == learned_turns(tokenizer, encoder, [SECOND, TWICE[1]])


def test_what_is_learned_follows_the_prompt_of_evaluation(case):
    found, tokenizer = case
    chat = THOUGHT if found.thought else TWICE
    encoder = ChatEncoder(tokenizer)
    ids, mask = encoder.encode(chat)
    prompt = encoder.prompt(chat[:3])
    if found.template is SENTENCES:  # its prompt begins a thought, which no conversation keeps
        prompt = prompt[: -len(tokenizer("<think>\n")["input_ids"])]
    assert ids[: len(prompt)].tolist() == prompt and not mask[len(prompt) - 1] and mask[len(prompt)]


def test_reasoning_is_learned_where_the_template_keeps_it_and_counted_where_not(case, learned_turns):
    found, tokenizer = case
    encoder = ChatEncoder(tokenizer)
    assert learned_turns(tokenizer, encoder, THOUGHT) == (found.thought or found.twice)
    assert encoder.encode_whole(THOUGHT).reasoning_left_out != ("One." in "".join(found.thought or []))


def test_calls_are_learned_through_the_token_that_closes_them(case, learned_turns):
    found, tokenizer = case
    encoder = ChatEncoder(tokenizer)
    if found.called:
        tools = [TOOL] if "tools" in found.template else []
        assert learned_turns(tokenizer, encoder, CALLED, tools) == found.called
    elif "tool_calls" not in found.template:
        with pytest.raises(UnfitChatError, match=r"leaves out a tool call|refuses it|leaves out the tools"):
            encoder.encode(CALLED, [TOOL])


def test_arguments_as_text_and_no_content_where_a_template_reads_them_so(make_tokenizer_of, learned_turns):
    tokenizer = make_tokenizer_of(SENTENCES, "<｜end_of_sentence｜>")
    called = '<｜tool_call｜>function<｜tool_sep｜>rain\n{"city": "Bern"}<｜tool_end｜><｜end_of_sentence｜>'
    assert learned_turns(tokenizer, ChatEncoder(tokenizer), CALLED) == [called, "Yes.<｜end_of_sentence｜>"]


def test_a_message_that_a_template_looks_into(make_tokenizer_of, learned_turns):
    """Marks at the edges would hide from the template that a user's message is what a tool returned."""
    tokenizer = make_tokenizer_of(LAST_THOUGHT, "<|im_end|>", "<think>", "</think>")
    returned = {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"}
    chat = [FIRST, {"role": "assistant", "content": "Look.", "reasoning_content": "One."}, returned, THOUGHT[3]]
    first = "<think>\nOne.\n</think>\n\nLook.<|im_end|>"
    learned = learned_turns(tokenizer, ChatEncoder(tokenizer), chat)
    assert learned == [first, "<think>\nTwo.\n</think>\n\nThus.<|im_end|>"]


def test_what_a_template_forbids_is_rejected_with_its_words(make_tokenizer_of):
    for template, words in ((LLAMA_2, "Only users and assistants"), (MODEL_ROLE, "Roles must alternate")):
        encoder = ChatEncoder(make_tokenizer_of(template, "</s>"))
        with pytest.raises(UnfitChatError, match=words) as caught:
            encoder.encode([SYSTEM, *TWICE])
        assert caught.value.reason == "the chat template refuses it"


def test_options_of_a_row_and_of_the_settings(make_tokenizer_of, learned_turns):
    tokenizer = make_tokenizer_of(PROMPTED_THOUGHT, "<|im_end|>", "<think>", "</think>")
    plain, off = ChatEncoder(tokenizer), ChatEncoder(tokenizer, TemplateSettings(options={"enable_thinking": False}))
    expected = ["So.<|im_end|>", "Thus.<|im_end|>"]
    assert learned_turns(tokenizer, off, TWICE) == expected
    assert learned_turns(tokenizer, plain, TWICE, (), {"enable_thinking": False}) == expected
    assert off.prompt(TWICE[:3]) == plain.prompt(TWICE[:3], (), {"enable_thinking": False})
    with pytest.raises(UnfitChatError, match="options that a chat template cannot be given: tools"):
        plain.encode(TWICE, (), {"tools": []})
