"""The chat templates that the wheel of `trl` carries, read as data: none is refused, and what is learned of a stock
template is what its twin for training marks.

A twin differs from its stock template where both are listed in `DIFFERENT`; everywhere else both label the same text.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest

from pipeline.data.chat.encoder import ChatEncoder, UnfitChatError
from pipeline.engine.sources import package

pytestmark = pytest.mark.network
WHEEL = {
    "kind": "package",
    "name": "trl",
    "version": "1.16.0",
    "filename": "trl-1.16.0-py3-none-any.whl",
    "sha256": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
}
FOLDER = "trl/chat_templates/"
ENDS = {
    "<|END_OF_TURN_TOKEN|>": "cohere cohere2",
    "<｜end▁of▁sentence｜>": "deepseek_r1_distill deepseekv3",
    "<turn|>": "diffusion_gemma gemma4 gemma4_v2 gemma4_v3 gemma4_v4 gemma4_v5",
    "<end_of_turn>": "gemma gemma3",
    "<|endoftext|>": "glm4moe phi3 phi3_5",
    "<|return|>": "gptoss",
    "<end_of_utterance>": "idefics3 smolvlm",
    "<|im_end|>": "lfm2 lfm2_v2 lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl nemotron_3_5_lightning nemotron_3_nano "
    "nemotron_3_super nemotron_3_ultra qwen2_5 qwen2_5_vl qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 "
    "qwen3_instruct_2507 qwen3_vl",
    "<|eot_id|>": "llama3 llama3_1 llama3_2",
    "</s>": "llava_next",
    "<|eot|>": "muse_glimmer",
}
"""Stock templates by the token that ends a turn, which is EOS here."""
END_OF = {name: end for end, names in ENDS.items() for name in names.split()}
GEMMAS = {"gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"}
WITHOUT_TWIN = GEMMAS | {"lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "llama3_1", "llama3_2"}
DROPPED = re.compile(r"^(<think>\n)?[^<]*</think>\n\n")
DIFFERENT = {
    # The twin thinks in every turn; the stock template keeps the block of turns after the last question alone.
    **dict.fromkeys(("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"), lambda turn: DROPPED.sub("", turn)),
    # The twin ends a conversation with the role that opens the next turn, which the stock template does not print.
    "glm4moe": lambda turn: re.sub(r"<\|user\|>$", "", turn),
    # The stock template opens the tool's response right after a call, at which generation stops; the twin does not
    # count that token as the model's.
    "diffusion_gemma": lambda turn: turn.removesuffix("<|tool_response>"),
}
SYSTEM, ASKED, MORE = ({"role": role, "content": text} for role, text in
                       (("system", "Be brief."), ("user", "How?"), ("user", "And?")))  # fmt: skip
SO, THUS = {"role": "assistant", "content": "So."}, {"role": "assistant", "content": "Thus."}
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "rain", "description": "Looks it up.", "parameters": CITY}}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "rain", "arguments": {"city": "Bern"}}}
CALLED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "wet", "name": "rain", "tool_call_id": "abcdefghi"},
]
CHATS = {
    "one": ([ASKED, SO], ()),
    "two": ([ASKED, SO, MORE, THUS], ()),
    "system": ([SYSTEM, ASKED, SO, MORE, THUS], ()),
    "thinking": (
        [SYSTEM, ASKED, {**SO, "reasoning_content": "One."}, MORE, {**THUS, "reasoning_content": "Two."}],
        (),
    ),
    "called": ([SYSTEM, ASKED, *CALLED, SO, MORE, THUS], ()),
    "tools": ([SYSTEM, ASKED, *CALLED, SO, MORE, THUS], (TOOL,)),
    "all": ([SYSTEM, ASKED, {**CALLED[0], "reasoning_content": "One."}, CALLED[1], {**SO, "reasoning_content": "Two."}],
            (TOOL,)),
}  # fmt: skip
FORBIDDEN = {
    "gemma": ("system", "System role not supported"),
    "cohere": ("tools", "Conversation roles must alternate"),
    "llava_next": ("tools", "Only user and assistant roles are supported"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Template sources by name."""
    cache = Path(os.environ.get("LLAMA_PRO_CACHE") or tmp_path_factory.mktemp("cache"))
    with zipfile.ZipFile(package.fetch(WHEEL, cache)) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(FOLDER) and name.endswith(".jinja")]
        return {name.removeprefix(FOLDER).removesuffix(".jinja"): wheel.read(name).decode() for name in names}


@pytest.fixture
def encoders(sources, make_tokenizer_of):
    """A tokenizer for a stock template and its twin, if there is one, and an encoder for each."""

    def build(name):
        found = [sources[one] for one in (name, f"{name}_training") if one in sources]
        tokenizer = make_tokenizer_of(
            "".join(found), END_OF[name], "<think>", "</think>", "<tool_call>", "</tool_call>"
        )
        return tokenizer, *(ChatEncoder(tokenizer, source) for source in found)

    return build


def test_all_templates_of_the_wheel_are_looked_at(sources):
    twins = {f"{name}_training" for name in set(END_OF) - WITHOUT_TWIN}
    assert set(sources) == set(END_OF) | twins and len(sources) == 72


@pytest.mark.parametrize("name", END_OF)
def test_no_template_is_refused(encoders, learned_turns, name):
    tokenizer, *encoders_of = encoders(name)
    for encoder in encoders_of:
        for kind in ("one", "two"):
            messages, tools = CHATS[kind]
            turns = learned_turns(tokenizer, encoder, messages, tools)
            said = [message["content"] for message in messages if message["role"] == "assistant"]
            assert len(turns) == len(said) and all(word in turn for word, turn in zip(said, turns, strict=True))
            assert not re.search(r"How|And|Be brief|<\|im_start\|>|start_of_turn|start_header", "".join(turns))
            assert encoder.closing_tokens()
            assert kind == "one" or turns[0].endswith(tuple(encoder.special_tokens))


@pytest.mark.parametrize("name", sorted(set(END_OF) - WITHOUT_TWIN))
@pytest.mark.parametrize("kind", CHATS)
def test_a_stock_template_and_its_twin_label_the_same_text(encoders, learned_turns, name, kind):
    tokenizer, stock, twin = encoders(name)
    found = []
    for encoder in (stock, twin):
        try:
            found.append(learned_turns(tokenizer, encoder, *CHATS[kind]))
        except UnfitChatError as error:
            found.append(str(error))
    if isinstance(found[0], list) and isinstance(found[1], list):
        found = [[DIFFERENT.get(name, str)(turn) for turn in turns] for turns in found]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_template_forbids_is_rejected_with_its_words(encoders, name):
    kind, words = FORBIDDEN[name]
    with pytest.raises(UnfitChatError, match=words) as caught:
        encoders(name)[1].encode(*CHATS[kind])
    assert caught.value.reason == "the chat template refuses it"


@pytest.mark.parametrize(
    "name", ["gptoss", "qwen3", "qwen3_8", "lfm2_2_5", "muse_glimmer", "nemotron_3_nano", "glm4moe"]
)
def test_reasoning_and_calls_are_learned(encoders, learned_turns, name):
    tokenizer, encoder, *_ = encoders(name)
    turns = learned_turns(tokenizer, encoder, *CHATS["thinking"])
    assert "Two." in turns[-1] and "Thus." in turns[-1]
    called = learned_turns(tokenizer, encoder, *CHATS["tools"])
    assert len(called) == 3 and "rain" in called[0] and "Bern" in called[0] and "wet" not in "".join(called)
