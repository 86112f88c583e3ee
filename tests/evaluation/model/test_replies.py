"""Replies of a chat model: as the slow path gives them, whatever stands beside them, and the same from a server."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from pipeline.data.chat.template import TemplateSettings
from pipeline.evaluation.model.generation import LocalGenerator
from pipeline.evaluation.model.replies import ChatReplies, Reply, Turn
from pipeline.evaluation.remote.completions import RemoteGenerator
from tests.evaluation.judge_server import settings
from tests.evaluation.remote.test_completions import remote, server

ASKED = ["Write a line.", "Why?", "Name three trees that grow near a lake, and say what each is good for.", "42"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def conversations():
    return [[{"role": "user", "content": text}] for text in ASKED]


def one_by_one(model, tokenizer, prompt, length, ends, stop=()):
    """The reply as transformers' own `generate` gives it, for this prompt alone."""
    config = GenerationConfig(max_new_tokens=length, do_sample=False, eos_token_id=sorted(ends), pad_token_id=0)
    ids = torch.tensor([prompt])
    stops = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **stops)
    written = made[0, len(prompt) :].tolist()
    is_ended = len(written) < length or written[-1] in ends
    while written and written[-1] in ends:
        written.pop()
    text = tokenizer.decode(written, skip_special_tokens=True)
    return Reply(text, not is_ended and not any(one in text for one in stop))


@pytest.fixture
def rendered(tokenizer):
    return [
        tokenizer.apply_chat_template(one, chat_template=TEMPLATE, tokenize=True, return_dict=True)["input_ids"]
        for one in conversations()
    ]


def endings(model, tokenizer, prompts):
    """A token that ends one greedy reply, and a text that ends another, somewhere inside."""
    texts = LocalGenerator(model, tokenizer).continuations(prompts, [], 20)
    plain = [[c for c in text if c.isascii() and c.isprintable()] for text in texts]
    stop = plain[2][3]
    end = next(c for c in plain[0][1:] if c != stop)
    return tokenizer(end)["input_ids"][-1], stop


def turns(prompts, lengths, seeds) -> list[Turn]:
    return list(map(Turn, prompts, lengths, seeds))


def test_greedy_replies_are_those_of_the_slow_path(llama, tokenizer, rendered, monkeypatch):
    end, stop = endings(llama, tokenizer, rendered)
    lengths, ends = [20, 20, 20, 7], {tokenizer.eos_token_id, end}
    expected = [
        one_by_one(llama, tokenizer, prompt, length, ends, [stop])
        for prompt, length in zip(rendered, lengths, strict=True)
    ]
    monkeypatch.setattr(llama, "generate", None)
    speaker = LocalGenerator(llama, tokenizer)
    assert speaker.turns(turns(rendered, lengths, [0] * 4), ends, [stop], 0.0) == expected
    assert {reply.is_cut for reply in expected} == {True, False}
    assert any(reply.text.endswith(stop) for reply in expected)


def test_many_conversations_are_run_in_one_batch(llama, tokenizer, monkeypatch):
    speaker, batches = LocalGenerator(llama, tokenizer), []
    run = speaker.decoder._run

    def counted(rows, *rest):
        batches.append(len(rows.requests))
        run(rows, *rest)

    monkeypatch.setattr(speaker.decoder, "_run", counted)
    said = ChatReplies(speaker, TEMPLATE).replies(conversations(), max_new_tokens=5, temperature=0.0, seeds=[0] * 4)
    assert len(said) == 4 and batches == [4]


def test_a_sampled_reply_hangs_on_its_conversation_and_its_seed_alone(llama, tokenizer):
    replies = ChatReplies(LocalGenerator(llama, tokenizer), TEMPLATE)
    asked = {"max_new_tokens": 12, "temperature": 1.0}
    together = replies.replies(conversations(), seeds=[3, 1, 4, 1 << 47], **asked)
    backwards = replies.replies(conversations()[::-1], seeds=[1 << 47, 4, 1, 3], **asked)
    assert backwards[::-1] == together
    assert replies.replies(conversations()[1:2], seeds=[1], **asked) == together[1:2]
    assert replies.replies(conversations()[1:2], seeds=[2], **asked) != together[1:2]


def test_a_full_window_leaves_room_for_less_or_nothing(llama, tokenizer, rendered):
    speaker = LocalGenerator(llama, tokenizer)
    full = ChatReplies(speaker, TEMPLATE).replies(conversations(), max_new_tokens=20, temperature=0.0, seeds=[0] * 4)
    speaker.window = len(rendered[0]) + 3
    found = ChatReplies(speaker, TEMPLATE).replies(conversations(), max_new_tokens=20, temperature=0.0, seeds=[0] * 4)
    assert found[2] == Reply("", True) and full[2].text
    assert found[0].is_cut and full[0].text.startswith(found[0].text) and len(found[0].text) < len(full[0].text)
    assert found[1] == full[1] or found[1].is_cut


def test_a_server_gives_the_replies_of_this_process(llama, tokenizer, rendered):
    """The text that ends a reply is part of it either way, and a token that ends a turn ends it there too."""
    end, stop = endings(llama, tokenizer, rendered)
    asked = (turns(rendered, [20, 20, 20, 7], [0, 1, 2, 1 << 47]), {tokenizer.eos_token_id, end}, [stop], 0.0)
    expected = LocalGenerator(llama, tokenizer).turns(*asked)
    record = server.Served(llama, tokenizer)
    with server.serving(record) as url:
        assert RemoteGenerator(remote(url), tokenizer, 2048).turns(*asked) == expected
    assert [body["max_tokens"] for body in record.asked].count(7) == 1
    assert all(body["stop_token_ids"] == [end] and body["stop"][0] == stop for body in record.asked)
    assert all(0 <= body["seed"] < 1 << 31 for body in record.asked)


def test_mt_bench_and_mint_ask_a_server_for_every_reply(make_bench, llama, tokenizer):
    benchmark, inputs, endpoint = make_bench
    local = benchmark.run(llama, tokenizer, inputs("local", endpoint))
    record = server.Served(llama, tokenizer)
    with server.serving(record) as url:
        served = benchmark.measure(RemoteGenerator(remote(url), tokenizer, 2048), inputs("served", endpoint))
    assert served.items == local.items and record.asked


@pytest.fixture(params=["mt_bench", "mint"])
def make_bench(request, local, inputs, tmp_path):
    from dataclasses import replace

    from pipeline.evaluation.judge.mint import Mint, MintTask
    from pipeline.evaluation.judge.mt_bench import MTBench
    from tests.evaluation.judge import test_mint, test_mt_bench
    from tests.evaluation.judge_server import serving
    from tests.evaluation.remote.test_endpoint import ROWS

    def within(name, endpoint):
        (tmp_path / name).mkdir()
        return replace(inputs, directory=tmp_path / name, endpoint=endpoint, isolation="limits")

    if request.param == "mint":
        task = MintTask(local("rows", test_mint.ROWS), "reasoning", "short_answer")
        yield Mint(tasks={"gsm8k": task}, **test_mint.SETTINGS), within, settings("http://localhost:1/v1")
        return
    sources = {"questions": test_mt_bench.QUESTIONS, "prompts": ROWS, "references": test_mt_bench.REFERENCES}
    greedy = {**test_mt_bench.SETTINGS, "temperatures": {"writing": 0.0, "math": 0.0}}
    with serving(test_mt_bench.by_turn) as (_, endpoint):
        yield MTBench(**{name: local(name, rows) for name, rows in sources.items()}, **greedy), within, endpoint


def test_what_a_server_says_of_the_end_is_read():
    from pipeline.evaluation.remote.completions import _closed

    stop, ends = ["</a>", "</b>"], ["<|end|>"]

    def closed(text, **more):
        return _closed({"text": text, **more}, stop, ends)

    assert closed("x", stop_reason="</b>", finish_reason="stop") == Reply("x</b>", False)
    assert closed("x</a> and </b>", finish_reason="length") == Reply("x</a>", False)
    assert closed("x<|end|>y", stop_reason=7) == Reply("x", False)
    assert closed("x", finish_reason="length", stop_reason=None) == Reply("x", True)
    assert closed("x") == Reply("x", False)


def test_no_template_is_refused(llama, tokenizer):
    speaker = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=None, name_or_path="plain"), window=9)
    with pytest.raises(ValueError, match="plain has no chat template"):
        ChatReplies(speaker, None)


class Listener:
    """A speaker that says nothing and keeps what it is asked."""

    window = 1000

    def __init__(self, tokenizer):
        self.tokenizer, self.heard = tokenizer, []

    def turns(self, asked, ends, stop, temperature):
        self.heard += [(self.tokenizer.decode(turn.prompt), set(ends)) for turn in asked]
        return [Reply("", False) for _ in asked]


def test_prompts_are_rendered_as_for_training(tokenizer):
    dated = "{{ strftime_now('%d %b %Y') + mood + '\n' }}" + TEMPLATE.replace("m['content']", "m['content'][0]['text']")
    speaker = Listener(tokenizer)
    replies = ChatReplies(speaker, TemplateSettings(dated, "2025-02-03", {"mood": "glad"}))
    replies.replies(conversations()[3:], max_new_tokens=5, temperature=0.0, seeds=[0])
    assert speaker.heard == [("03 Feb 2025glad\nuser: 42\nassistant:", {tokenizer.eos_token_id})]


def test_a_reply_ends_with_what_closes_a_turn_and_not_with_what_closes_a_part_of_it(tokenizer):
    """As gpt-oss does: other tokens close what the model says to itself."""
    inner, outer = (str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(tokenizer.all_special_ids)[:2])
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}"
        f"{{{{ {outer!r} if loop.last else {inner!r} }}}}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    speaker = Listener(tokenizer)
    ChatReplies(speaker, template).replies(conversations()[:1], max_new_tokens=5, temperature=0.0, seeds=[0])
    assert speaker.heard[0][1] == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(outer)}
