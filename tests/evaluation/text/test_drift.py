"""Drift against the divergence computed by hand, and the samples of a base against its own distribution."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.model import scoring
from pipeline.evaluation.text.base_samples import CHAT, FREE, BaseSamples, read_samples, write_samples
from pipeline.evaluation.text.drift import DOMAIN, NO_CHAT, NO_DOMAIN, Drift
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load, load_tokenizer

TEXTS = ["def grow(blocks):\n    return blocks + 8\n", "Zwölf Boxkämpfer jagen Viktor", "A longer text. " * 9, "Short."]
SETTINGS = {"num_free": 4, "prompts": ["Why?", "Who are you?"], "num_tokens": 24, "seed": 0, "date": None}
BOUNDS = {"documents": None, "sources": None, "max_document_tokens": None, "max_items": None, "max_tokens": None}


def drawing(**changes) -> BaseSamples:
    return BaseSamples(**{**SETTINGS, "template_options": {}, **changes})


@pytest.fixture(scope="module")
def base_directory(make_model):
    return Path(make_model(initializer_range=0.2, tie_word_embeddings=False))


@pytest.fixture(scope="module")
def base(base_directory):
    return load(base_directory, dtype=torch.float32)


@pytest.fixture(scope="module")
def drawn(base, base_directory):
    return drawing().draw(base, load_tokenizer(base_directory))


@pytest.fixture
def given(inputs, drawn, base_directory, tmp_path):
    """What the benchmark reads: samples, and held-out documents of a domain."""
    write_samples(drawn, tmp_path)
    lines = (json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "own.heldout.jsonl").write_text("".join(lines))
    (tmp_path / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"own": {}}}))
    return replace(inputs, data=tmp_path, samples=tmp_path, reference=base_directory)


@pytest.fixture
def moved(base_directory):
    """A function that gives the base with noise on one weight."""

    def make(name: str):
        model = load(base_directory, dtype=torch.float32)
        torch.manual_seed(3)
        with torch.no_grad():
            weight = model.get_parameter(name)
            weight += 0.3 * torch.randn_like(weight)
        return model

    return make


def by_hand(base, model, ids: list[int], start: int) -> list[float]:
    """KL(base || model) of every token after `start`, in double, from whole logits."""
    with torch.no_grad():
        theirs, own = (
            one(torch.tensor([ids])).logits[0, start - 1 : -1].double().log_softmax(-1) for one in (base, model)
        )
    return (theirs.exp() * (theirs - own)).sum(-1).tolist()


def test_an_identity_expansion_has_a_drift_of_exactly_zero(base, base_directory, given, tmp_path):
    found = read_source(base_directory)
    write_expansion(BlockExpansion(2, 1).plan(found), found, tmp_path / "grown")
    grown = load(tmp_path / "grown", dtype=torch.float32)
    assert len(grown.model.layers) > len(base.model.layers)
    items = Drift(window=32, **BOUNDS).run(grown, load_tokenizer(base_directory), given).items
    assert [item.numerator for item in items] == [0.0] * 10
    assert {item.category for item in items} == {FREE, CHAT, DOMAIN}


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.layers.2.mlp.down_proj.weight"])
def test_a_perturbed_weight_has_the_divergence_computed_by_hand(name, base, base_directory, drawn, given, moved):
    model, tokenizer = moved(name), load_tokenizer(base_directory)
    outcome = Drift(window=200, **BOUNDS).run(model, tokenizer, given)
    found = {item.id: item for item in outcome.items}
    for sample in drawn:
        expected = by_hand(base, model, [*sample.prompt, *sample.tokens], len(sample.prompt))
        item = found[sample.id]
        assert (item.category, item.denominator) == (sample.kind, len(sample.tokens)) == (sample.kind, len(expected))
        assert item.numerator == pytest.approx(sum(expected), rel=1e-4) and item.numerator > 1e-3
    for number, text in enumerate(TEXTS):
        expected = by_hand(base, model, tokenizer(text.strip())["input_ids"], 1)
        assert found[f"own/{number}"].numerator == pytest.approx(
            sum(expected[-int(found[f"own/{number}"].denominator) :]), rel=1e-4
        )
    assert (outcome.metric, outcome.higher_is_better, outcome.notes) == ("kl_nats", False, ())


def test_neither_chunks_nor_batches_change_it(base_directory, given, moved, monkeypatch):
    model, tokenizer = moved("lm_head.weight"), load_tokenizer(base_directory)
    whole = Drift(window=16, **BOUNDS).run(model, tokenizer, given)
    monkeypatch.setattr(scoring, "_CHUNK", 5)
    monkeypatch.setattr(scoring, "batches", lambda items, lengths, budget: ([item] for item in items))
    small = Drift(window=16, **BOUNDS).run(model, tokenizer, given)
    for one, other in zip(whole.items, small.items, strict=True):
        assert (one.id, one.hash, one.denominator) == (other.id, other.hash, other.denominator)
        assert one.numerator == pytest.approx(other.numerator, rel=1e-4)


def test_what_was_not_measured_is_said(base, base_directory, given, tmp_path):
    tokenizer = load_tokenizer(base_directory)
    outcome = Drift(window=16, **BOUNDS).run(base, tokenizer, replace(given, data=None))
    assert outcome.notes == (NO_DOMAIN,) and {item.category for item in outcome.items} == {FREE, CHAT}
    write_samples([sample for sample in read_samples(tmp_path) if sample.kind == FREE], tmp_path)
    assert Drift(window=16, **BOUNDS).run(base, tokenizer, given).notes == (NO_CHAT,)


def test_models_that_cannot_be_compared_are_refused(base, base_directory, given, tiny, tmp_path):
    tokenizer, drift = load_tokenizer(base_directory), Drift(window=16, **BOUNDS)
    for lacking in ("reference", "samples"):
        with pytest.raises(ValueError, match="against a second model on what that one wrote"):
            drift.run(base, tokenizer, replace(given, **{lacking: None}))
    with pytest.raises(ValueError, match=r"has 320 logits and the one in .* 300"):
        drift.run(tiny(vocab_size=320), tokenizer, given)
    (tmp_path / "samples.jsonl").write_text('{"id": "free/000"}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl: .*rerun the stage samples"):
        drift.run(base, tokenizer, given)


def test_samples_are_the_same_in_every_run(base, base_directory, drawn, tmp_path):
    tokenizer = load_tokenizer(base_directory)
    assert drawing().draw(base, tokenizer) == drawn and drawing(seed=1).draw(base, tokenizer) != drawn
    write_samples(drawn, tmp_path)
    assert read_samples(tmp_path) == drawn
    assert [sample.id for sample in drawn] == [f"free/{n:03}" for n in range(4)] + ["chat/000", "chat/001"]
    assert len({tuple(sample.tokens) for sample in drawn}) == len(drawn)
    for sample in drawn:
        whole = len(sample.tokens) == SETTINGS["num_tokens"]
        assert whole or sample.tokens[-1] == tokenizer.eos_token_id  # which ends a text and is part of it
        assert tokenizer.eos_token_id not in sample.tokens[:-1]
        asked = [{"role": "user", "content": sample.asked}]
        begin = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        assert list(sample.prompt) == ([tokenizer.eos_token_id] if sample.kind == FREE else begin)


def test_samples_follow_the_distribution_of_the_base(moved, base_directory):
    """Pearson's statistic over the tokens that are expected at least five times, the rest put together."""
    tokenizer, count = load_tokenizer(base_directory), 4000
    base = moved("model.embed_tokens.weight")  # whose row of EOS, which pads too, is 0 at first: all tokens alike
    found = drawing(num_free=count, prompts=[], num_tokens=1).draw(base, tokenizer)
    with torch.no_grad():
        probabilities = base(torch.tensor([[tokenizer.eos_token_id]])).logits[0, -1].double().softmax(-1)
    observed = torch.bincount(torch.tensor([sample.tokens[0] for sample in found]), minlength=300).double()
    expected, often = count * probabilities, count * probabilities >= 5
    assert 20 < often.sum() < 300 and probabilities.max() > 4 / 300  # a distribution worth a test

    def statistic(expected: torch.Tensor) -> float:
        seen, wanted = (torch.cat([v[often], v[~often].sum()[None]]) for v in (observed, expected))
        return float(((seen - wanted) ** 2 / wanted).sum())

    freedom = float(often.sum())
    assert abs(statistic(expected) - freedom) < 5 * (2 * freedom) ** 0.5
    colder = count * (probabilities.log() / 0.8).softmax(-1)
    assert statistic(colder) > freedom + 10 * (2 * freedom) ** 0.5  # what a temperature of 0.8 would have given


def test_a_base_without_a_chat_template_writes_free_samples_only(base, base_directory):
    tokenizer = load_tokenizer(base_directory)
    tokenizer.chat_template = None
    assert {sample.kind for sample in drawing().draw(base, tokenizer)} == {FREE}
    with pytest.raises(ValueError, match=r"no chat template, .* and num_free=0 leaves none"):
        drawing(num_free=0).draw(base, tokenizer)


def test_wrong_settings_are_named(base, base_directory):
    with pytest.raises(ValueError, match="num_free=-1 must be at least 0"):
        drawing(num_free=-1)
    with pytest.raises(ValueError, match="num_tokens=0 must be at least 1"):
        drawing(num_tokens=0)
    with pytest.raises(ValueError, match="leave no sample to draw"):
        drawing(num_free=0, prompts=[])
    with pytest.raises(ValueError, match="must be texts that are not empty"):
        drawing(prompts=[" "])
    with pytest.raises(ValueError, match="template_options name messages"):
        drawing(template_options={"messages": []})
    with pytest.raises(ValueError, match=r"num_tokens=256 .* 256 positions; use at most 255"):
        drawing(num_tokens=256).check_base(256, True)
    with pytest.raises(ValueError, match=r"the prompt 'Why\?.*' of \d+ tokens and num_tokens=24 do not fit"):
        drawing(prompts=["Why? " * 50]).draw(base, load_tokenizer(base_directory))
