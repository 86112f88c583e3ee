"""What evaluation asks a model with are the ids that training would have given it, for any kind of tokenizer."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline.data.tokens.encoding import Encoding, encode_all
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.data.tokens.vocabulary import NoRowError
from pipeline.evaluation.base import Workspace
from pipeline.evaluation.model.generation import GenerationSettings, LocalGenerator
from pipeline.evaluation.model.replies import Turn
from pipeline.evaluation.remote.completions import RemoteGenerator, RemoteLM
from pipeline.evaluation.tasks.loglikelihood import EncodedHFLM, SharedPrefixLM
from pipeline.evaluation.text import windows
from pipeline.evaluation.text.perplexity import HeldOutText
from pipeline.evaluation.text.positions import PositionLoss
from tests.data.tokenizers_of_kinds import AROUND, make

TEXTS = ["How many blocks has it?", "Forty.", "def f(x):\n    return x + 1", "a tree </s> of <s> trees 🙂"]
PAIRS = [("How many blocks", " Forty."), ("Forty", " trees"), ("trees ", "of"), ("", "a tree"), ("a bl", "ocks")]
BOUNDS = {"documents": None, "sources": None, "window": 1000, "max_items": None, "max_tokens": None}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(vocab_size=512)


@pytest.fixture
def held_out(tmp_path):
    lines = (json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "one.heldout.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"one": {}}}))
    return Workspace(lambda source: tmp_path, lambda source: [], tmp_path)


@pytest.fixture
def seen(monkeypatch):
    """The ids of the passages that are scored."""
    found = []
    original = windows.score_tokens

    def record(model, passages, size, inputs):
        found.extend(passages)
        return original(model, passages, size, inputs)

    monkeypatch.setattr(windows, "score_tokens", record)
    return found


def requests(pairs):
    return [Instance("loglikelihood", {}, pair, number, ("task", number, 1)) for number, pair in enumerate(pairs)]


def close(found, expected):
    return [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", [HeldOutText, PositionLoss])
def test_a_scored_document_has_the_ids_of_training(model, held_out, seen, around, kind):
    tokenizer = make(around)
    more = {"edges": [4]} if kind is PositionLoss else {}
    outcome = kind(max_document_tokens=None, **BOUNDS, **more).run(model, tokenizer, held_out)
    trained = {tuple(ids.tolist()) for ids in encode_all(tokenizer, TEXTS, Encoding())}
    end, prefix = len(TextEncoder(tokenizer).special.end), len(AROUND[around][1])
    assert {(*passage.tokens, *TextEncoder(tokenizer).special.end) for passage in seen} == trained
    assert len(trained) == len(TEXTS) and end in (1, 2)
    for passage, item in zip(seen, outcome.items, strict=True):
        assert passage.scored == [False] * max(prefix, 1) + [True] * (len(passage.tokens) - max(prefix, 1))
        whole = len(passage.text.encode())
        assert item.denominator == whole if prefix else item.denominator < whole
        ids = torch.tensor([passage.tokens])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        nats = logprobs.gather(-1, ids[0, 1:, None])[:, 0][torch.tensor(passage.scored[1:])].sum()
        assert item.numerator == pytest.approx(-float(nats) / math.log(2), rel=1e-5)


@pytest.mark.parametrize("around", ["none", "bytes", "bos"])
def test_where_lm_eval_is_right_its_scores_are_ours(model, around):
    tokenizer = make(around)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
    pairs = [pair for pair in PAIRS if pair[0] != "a bl"]
    expected = theirs.loglikelihood(requests(pairs), disable_tqdm=True)
    for lm in (SharedPrefixLM(model, tokenizer, lambda **_: None), EncodedHFLM(model, tokenizer)):
        assert close(lm.loglikelihood(requests(pairs), disable_tqdm=True), expected)
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1)) for text in ("Forty. " * 3, "", "a tree")]
    if around in ("none", "bytes"):
        expected = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
        found = SharedPrefixLM(model, tokenizer, lambda **_: None).loglikelihood_rolling(texts)
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("around", ["eos", "both", "cls", "sequence", "roberta"])
def test_nothing_stands_behind_contexts_options_and_prompts(model, around):
    tokenizer = make(around)
    bare = make({1: "bos", 3: "cls"}.get(next(iter(AROUND[around][1]), 0), "none"))
    lm, encoder = SharedPrefixLM(model, tokenizer, lambda **_: None), TextEncoder(bare)
    for context, option in PAIRS:
        assert lm._encode_pair(context, option) == encoder.pair(context, option)
        assert not {2, 4} & set(lm.tok_encode(context))
    ids, mask = lm.tok_batch_encode(["Forty.", "a tree of trees"])
    assert [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)] == [
        encoder.prompt("Forty."), encoder.prompt("a tree of trees")
    ]  # fmt: skip
    assert LocalGenerator(model, tokenizer)._encode("Forty.", 99) == encoder.prompt("Forty.")
    if AROUND[around][1] != [3]:
        plain = HFLM(pretrained=model, tokenizer=bare, backend="causal", batch_size=1)
        expected = plain.loglikelihood(requests(PAIRS[:4]), disable_tqdm=True)
        assert close(lm.loglikelihood(requests(PAIRS[:4])), expected)
        assert close(EncodedHFLM(model, tokenizer).loglikelihood(requests(PAIRS[:4])), expected)


def test_a_token_that_spans_context_and_option_is_scored(model):
    tokenizer = make("bos")
    found = SharedPrefixLM(model, tokenizer, lambda **_: None).loglikelihood(requests([("a bl", "ocks")]))
    encoder = TextEncoder(tokenizer)
    ids = torch.tensor([[*encoder.prompt("a bl"), *encoder.continuation("ocks")]])
    count = len(encoder.continuation("ocks"))
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    assert encoder.prompt("a blocks") != ids[0].tolist()
    assert found[0][0] == pytest.approx(float(logprobs.gather(-1, ids[0, 1:, None])[-count:].sum()), abs=1e-4)
    with pytest.raises(ValueError, match=r"the text '' after 'How many' has no token"):
        SharedPrefixLM(model, tokenizer, lambda **_: None).loglikelihood(requests([("How many", "")]))


@pytest.mark.parametrize(("around", "before"), [("bos", [1]), ("several", [5, 1]), ("none", [1]), ("eos", [1])])
def test_a_rolling_text_is_scored_once_after_its_beginning(tiny, around, before):
    model, tokenizer = tiny(vocab_size=512, max_position_embeddings=16), make(around)
    text = "How many blocks has the grown model? " * 3
    (found,) = SharedPrefixLM(model, tokenizer, lambda **_: None).loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))]
    )
    ids = TextEncoder(tokenizer).continuation(text)
    expected, start = 0.0, 0
    while start < len(ids):
        stop = min(start + 16, len(ids))
        row = torch.tensor([[*before, *ids[:stop]][-17:]])
        with torch.no_grad():
            logprobs = model(input_ids=row[:, :-1]).logits[0].double().log_softmax(-1)
        expected += float(logprobs.gather(-1, row[0, 1:, None])[-len(ids[start:stop]) :].sum())
        start += 16
    assert len(ids) > 20 and found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("around", AROUND)
def test_a_server_is_sent_the_same_ids(model, around):
    tokenizer = make(around)
    lm, local = RemoteLM(None, tokenizer, 64, lambda **_: None), SharedPrefixLM(model, tokenizer, lambda **_: None)
    for context, option in PAIRS:
        assert lm._encode_pair(context, option) == local._encode_pair(context, option)
    sent = []

    class Sent(RemoteGenerator):
        def complete(self, tokens, *args, **settings):
            sent.append(tokens)
            return [""]

    class Server:
        def each(self, task, jobs, progress, note):
            return [task(job) for job in jobs]

    Sent(Server(), tokenizer, 64).generate(["Forty."], GenerationSettings([], 4, 0.0, 1.0, 1, 0))
    assert sent == [LocalGenerator(model, tokenizer)._encode("Forty.", 60)]


def test_a_token_without_a_row_is_named_before_anything_runs(tiny, held_out):
    tokenizer = make("bos", added=["<far>"])
    model = tiny(vocab_size=len(tokenizer) - 1)
    message = rf"'<far>' \(id {len(tokenizer) - 1}\), but the model's embedding has {len(tokenizer) - 1} rows"
    lm = SharedPrefixLM(model, tokenizer, lambda **_: None)
    assert lm.loglikelihood(requests([("a", " b")]))
    with pytest.raises(NoRowError, match=message):
        lm.loglikelihood(requests([("a <far>", " b")]))
    with pytest.raises(NoRowError, match=message):
        LocalGenerator(model, tokenizer).generate(["a <far>"], GenerationSettings([], 4, 0.0, 1.0, 1, 0))
    with pytest.raises(NoRowError, match=message):
        LocalGenerator(model, tokenizer).turns([Turn([1, len(tokenizer) - 1], 4, 0)], set(), [], 0.0)
    path = held_out.data / "one.heldout.jsonl"
    path.write_text(json.dumps({"id": "0", "text": "a <far>"}) + "\n")
    with pytest.raises(NoRowError, match=message):
        HeldOutText(max_document_tokens=None, **BOUNDS).run(model, tokenizer, held_out)
