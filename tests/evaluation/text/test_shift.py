"""Token shift against a reference computed token by token, and the loss by position."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.base import score
from pipeline.evaluation.text.perplexity import HeldOutText
from pipeline.evaluation.text.positions import PositionLoss
from pipeline.evaluation.text.shift import TokenShift, compare, range_name, ranges
from pipeline.models import load, load_tokenizer

QUESTIONS = [{"q": {"text": f"What is {i} plus {i}?"}} for i in range(5)]
SETTINGS = {
    "prompt": "{q.text}",
    "is_chat": True,
    "window": 120,
    "max_new_tokens": 12,
    "max_items": None,
    "edges": [4],
}


@pytest.fixture
def make(local):
    return lambda **changes: TokenShift(prompts=local("questions", QUESTIONS), **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def base_directory(make_model):
    return Path(make_model(initializer_range=0.3))


@pytest.fixture
def moved(base_directory):
    """The base with noise on one matrix: it answers differently now and then."""
    model = load(base_directory, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        weight = model.model.layers[2].mlp.down_proj.weight
        weight += 0.25 * torch.randn_like(weight)
    return model


def test_a_model_is_not_shifted_against_itself(make, inputs, base_directory):
    model, tokenizer = load(base_directory, dtype=torch.float32), load_tokenizer(base_directory)
    outcome = make().run(model, tokenizer, replace(inputs, reference=base_directory))
    assert len(outcome.items) == 5 and score(outcome.items).value == 1.0
    for item in outcome.items:
        n = item.denominator
        assert 0 < n <= 12 and item.parts["unshifted"] == (n, n) and item.parts["KL, nats"] == (0.0, n)
        assert item.parts["marginal"] == item.parts["shifted"] == (0.0, n) and item.gold == "No token is shifted."


def test_ranks_are_those_of_a_token_by_token_reference(make, inputs, base_directory, moved):
    tokenizer, base = load_tokenizer(base_directory), load(base_directory, dtype=torch.float32)
    outcome = make(is_chat=False).run(moved, tokenizer, replace(inputs, reference=base_directory))
    kinds = {"unshifted": 0, "marginal": 0, "shifted": 0}
    for item in outcome.items:
        ids = tokenizer(item.prompt)["input_ids"]
        for _ in range(int(item.denominator)):
            with torch.no_grad():
                own, other = (one(torch.tensor([ids])).logits[0, -1] for one in (moved, base))
            token = int(own.argmax())
            rank = other.argsort(descending=True).tolist().index(token) + 1
            kinds["unshifted" if rank == 1 else "marginal" if rank <= 3 else "shifted"] += 1
            ids.append(token)
    found = {kind: sum(item.parts[kind][0] for item in outcome.items) for kind in kinds}
    assert found == kinds and min(found.values()) > 0
    assert sum(found.values()) == sum(item.denominator for item in outcome.items)
    early = [item.parts["unshifted at 1–4"] for item in outcome.items]
    late = [item.parts["unshifted at 5+"] for item in outcome.items]
    assert sum(a for a, _ in early + late) == found["unshifted"] and all(b == 4 for _, b in early)
    assert any("rank" in item.gold for item in outcome.items)


def test_the_divergence_is_kullback_and_leiblers(base_directory, moved):
    base = load(base_directory, dtype=torch.float32)
    moves = compare(moved, base, [5, 6, 7], [8, 9])
    with torch.no_grad():
        own, other = (one(torch.tensor([[5, 6, 7, 8]])).logits[0, 2:].double().softmax(-1) for one in (moved, base))
    assert torch.allclose(moves.divergences, (own * (own / other).log()).sum(-1), rtol=1e-9)
    assert moves.ranks.tolist() == [int((other[t] > other[t, token]).sum()) + 1 for t, token in enumerate([8, 9])]


def test_the_same_prompts_are_chosen_for_every_model(make, inputs, base_directory, moved):
    tokenizer, base = load_tokenizer(base_directory), load(base_directory, dtype=torch.float32)
    given = replace(inputs, reference=base_directory)
    one, other = (make(max_items=3).run(model, tokenizer, given) for model in (moved, base))
    assert [(i.id, i.hash) for i in one.items] == [(i.id, i.hash) for i in other.items] and len(one.items) == 3


def test_wrong_requests_are_named(make, inputs, base_directory, moved, tmp_path):
    tokenizer = load_tokenizer(base_directory)
    with pytest.raises(ValueError, match="a second model"):
        make().run(moved, tokenizer, inputs)
    with pytest.raises(ValueError, match=r"no prompt of LocalFiles.* has from 1 to 2 tokens"):
        make(window=14).run(moved, tokenizer, replace(inputs, reference=base_directory))
    with pytest.raises(ValueError, match="no field 'answer'"):
        make(prompt="{answer}").run(moved, tokenizer, replace(inputs, reference=base_directory))
    with pytest.raises(ValueError, match="leaves no room"):
        make(window=12)
    with pytest.raises(ValueError, match="ascending"):
        make(edges=[4, 2])
    other = load_tokenizer(base_directory)
    other.add_tokens(["<new>"])
    moved.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="different vocabularies"):
        make().run(moved, tokenizer, replace(inputs, reference=tmp_path))


def test_ranges_cover_every_position_once():
    assert list(ranges([4, 16], 20)) == [(1, 4), (5, 16), (17, 20)]
    assert list(ranges([4, 16], 4)) == [(1, 4)] and list(ranges([], 3)) == [(1, 3)]
    assert [range_name(first, [4, 16]) for first in (1, 5, 17)] == ["1–4", "5–16", "17+"]


TEXTS = ["A first document that grows.", "Another, shorter one.", "x"]
TEXT = {"documents": None, "sources": None, "window": 8, "max_document_tokens": None, "max_items": None}


def test_the_loss_by_position_adds_up_to_the_whole(inputs, tmp_path, tiny, tokenizer):
    """Bits of all ranges are the document's bits; of each range they are those of a forward pass over its window."""
    import json

    from pipeline.evaluation.base import content_hash

    lines = "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "own.heldout.jsonl").write_text(lines)
    (tmp_path / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"own": {}}}))
    model, given = tiny(), replace(inputs, data=tmp_path)
    outcome = PositionLoss(**TEXT, max_tokens=None, edges=[2, 5]).run(model, tokenizer, given)
    plain = HeldOutText(**TEXT, max_tokens=None).run(model, tokenizer, given)
    assert [(i.id, i.hash, i.numerator, i.denominator) for i in outcome.items] == [
        (i.id, i.hash, i.numerator, i.denominator) for i in plain.items
    ]
    for item in outcome.items:
        assert math.fsum(bits for bits, _ in item.parts.values()) == pytest.approx(item.numerator, rel=1e-9)
    item = next(item for item in outcome.items if item.hash == content_hash(TEXTS[0]))
    ids = tokenizer(TEXTS[0])["input_ids"]
    expected = 0.0
    for start in range(0, len(ids) - 1, 8):
        window, after = ids[start : start + 8], ids[start + 1 : start + 9]
        with torch.no_grad():
            logprobs = model(torch.tensor([window])).logits[0].log_softmax(-1)
        expected -= sum(float(logprobs[t, token]) for t, token in enumerate(after) if t + 1 <= 2) / math.log(2)
    assert item.parts["bits/token at 1–2"][0] == pytest.approx(expected, rel=1e-5)
    assert item.parts["bits/token at 6+"][1] < item.parts["bits/token at 3–5"][1]
