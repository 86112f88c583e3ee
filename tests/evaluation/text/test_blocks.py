"""Leaving blocks out, against models that really lack them."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers

from pipeline.evaluation.base import Item, Outcome, Workspace
from pipeline.evaluation.text.blocks import BlockDiagnostics, compare
from pipeline.evaluation.text.perplexity import HeldOutText
from pipeline.evaluation.text.updates import measure_updates
from pipeline.models import load
from pipeline.models.architecture.blocks import bypassed, decoder_blocks

SETTINGS = {"documents": None, "sources": None, "window": 16, "max_document_tokens": None}
BOUNDS = {"max_items": None, "max_tokens": None}
TEXTS = [
    "def grow(blocks):\n    return blocks + 8\n",
    "Zwölf Boxkämpfer jagen Viktor",
    "x" * 40,
    "Short.",
    "a b a b a b",
]
NEW = (1, 3, 4)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    lines = (json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (directory / "own.heldout.jsonl").write_text("".join(lines))
    (directory / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"own": {}}}))
    return Workspace(lambda source: directory, lambda source: [], directory)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A llama of five blocks, saved as if blocks 1, 3 and 4 had been added; block 3 is an exact identity."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[3].mlp.down_proj.weight.zero_()
    directory = tmp_path_factory.mktemp("expanded")
    model.save_pretrained(directory)
    entries = [{"position": p, "origin": 0, "group": i, "round": 1} for i, p in enumerate(NEW)]
    (directory / "expansion.json").write_text(json.dumps({"blocks": entries, "new_parameters": []}))
    return directory


@pytest.fixture(scope="module")
def diagnosed(saved, tokenizer, held_out):
    notes = []
    inputs = Workspace(held_out.locate, held_out.listing, held_out.data, lambda **fields: notes.append(fields))
    outcome = BlockDiagnostics(**SETTINGS, **BOUNDS, confidence=0.95).run(load(saved), tokenizer, inputs)
    return outcome, json.loads(json.dumps(outcome.facts(), allow_nan=False)), notes


def without(model, positions):
    """The same model really built without these blocks."""
    kept = [block for i, block in enumerate(model.model.layers) if i not in positions]
    for index, block in enumerate(kept):
        block.self_attn.layer_idx = index
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


@pytest.mark.parametrize("positions", [(1,), (4,), (1, 3, 4), (0, 2)])
def test_a_bypassed_block_is_a_block_that_is_not_there(saved, positions):
    ids = torch.arange(12).reshape(2, 6)
    model = load(saved)
    with torch.no_grad(), bypassed(decoder_blocks(model), positions):
        found = model(input_ids=ids).logits
    with torch.no_grad():
        whole, shorter = model(input_ids=ids).logits, without(load(saved), positions)(input_ids=ids).logits
    assert torch.equal(found, shorter) and not torch.equal(found, whole)


FAMILIES = {
    "gpt2": {}, "gpt_neox": {"intermediate_size": 48}, "falcon": {}, "bloom": {}, "phi": {}, "gemma2": {"head_dim": 8},
    "mixtral": {"num_local_experts": 2}, "qwen3": {"head_dim": 8}, "mpt": {}, "opt": {"ffn_dim": 48},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_found_and_bypassed_whatever_the_architecture(tiny, family):
    model = tiny(family, **FAMILIES[family])
    ids = torch.arange(1, 9).reshape(1, 8)
    blocks = decoder_blocks(model)
    states = {}

    def note(module, args, kwargs):
        states["in" if module is blocks[0] else "out"] = args[0] if args else kwargs["hidden_states"]

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    with torch.no_grad(), bypassed(blocks, [0]):
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    assert torch.equal(states["in"], states["out"])
    assert all(u.relative > 0 and not u.is_identity for u in measure_updates(model, blocks, [[1, 2, 3]], 512))


def test_hooks_are_gone_even_after_an_error(saved):
    model = load(saved)
    with pytest.raises(RuntimeError), bypassed(decoder_blocks(model), [0, 1]):
        raise RuntimeError
    assert not any(block._forward_hooks for block in decoder_blocks(model))


def test_a_model_without_one_list_of_blocks_is_refused(tiny):
    model = tiny()
    model.model.other = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in decoder_blocks(model)])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has 2 lists of 2 modules \(model\.layers, model\.other\)"):
        decoder_blocks(model)


def test_updates_are_means_over_real_tokens_only(saved):
    model, rows = load(saved), [[5, 6, 7, 8, 9], [10, 11], [12]]
    updates = measure_updates(model, decoder_blocks(model), rows, 512)
    ratios = [[] for _ in updates]
    for row in rows:
        with torch.no_grad():
            states = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        for i in range(4):  # the last of the states stands behind the final norm
            change = (states[i + 1] - states[i])[0].norm(dim=-1) / states[i][0].norm(dim=-1)
            ratios[i] += change.tolist()
    for update, expected in zip(updates[:4], ratios[:4], strict=True):
        assert update.relative == pytest.approx(sum(expected) / 8, rel=1e-5) and update.num_tokens == 8
    assert [u.is_identity for u in updates] == [False, False, False, True, False] and updates[3].relative == 0


def test_every_removal_is_the_score_of_a_model_that_lacks_the_blocks(diagnosed, saved, tokenizer, held_out):
    outcome, written, _ = diagnosed
    plain = HeldOutText(**SETTINGS, **BOUNDS)
    assert outcome.items == plain.run(load(saved), tokenizer, held_out).items
    removals = [entry["without"] for entry in written["diagnosis"]["blocks"]] + [written["diagnosis"]["without_all"]]
    assert [r["positions"] for r in removals] == [[1], [3], [4], [1, 3, 4]]
    total = sum(item.denominator for item in outcome.items)
    for removal in removals:
        items = plain.run(without(load(saved), removal["positions"]), tokenizer, held_out).items
        assert removal["numerators"] == [item.numerator for item in items]
        more = sum(removal["numerators"]) - sum(item.numerator for item in outcome.items)
        assert removal["value"] == pytest.approx(more / total, abs=1e-12)


def test_an_identity_costs_nothing_and_no_pass(diagnosed):
    _, written, notes = diagnosed
    entries = written["diagnosis"]["blocks"]
    identity = entries[1]
    assert [entry["is_identity"] for entry in entries] == [False, True, False] and identity["is_candidate"]
    removal = {key: identity["without"][key] for key in ("value", "stderr", "low", "high")}
    assert set(removal.values()) == {0.0}
    scored = {note["note"] for note in notes if "step" in note}
    assert {"tokens scored, whole model", "tokens scored, without block 1, 4"} <= scored
    assert not any("block 3" in note for note in scored)


def test_candidates_are_measured_together(diagnosed):
    _, written, _ = diagnosed
    diagnosis = written["diagnosis"]
    candidates = [entry["position"] for entry in diagnosis["blocks"] if entry["is_candidate"]]
    assert candidates == [e["position"] for e in diagnosis["blocks"] if e["without"]["low"] <= 0]
    assert diagnosis["without_candidates"]["positions"] == candidates
    assert len(diagnosis["updates"]) == 5 and diagnosis["updates"][3] == 0


def outcome(*bits):
    return Outcome("bits_per_byte", False, tuple(Item(str(i), "h", b, 10.0) for i, b in enumerate(bits)))


def test_the_interval_is_paired_over_documents():
    removal = compare(outcome(10, 20, 30), outcome(11, 21, 31), (7,), 0.95)
    assert (removal.value, removal.stderr, removal.low) == (pytest.approx(0.1), 0.0, pytest.approx(0.1))
    assert not removal.is_harmless
    removal = compare(outcome(10, 20, 30), outcome(9, 21, 33), (7,), 0.95)
    assert removal.stderr == pytest.approx(math.sqrt(3 / 2 * (4 + 0 + 4)) / 30)
    assert removal.high - removal.value == pytest.approx(1.959964 * removal.stderr)
    assert removal.is_harmless


def test_one_document_gives_no_interval_and_no_candidate():
    removal = compare(outcome(10), outcome(9), (7,), 0.95)
    assert not removal.is_harmless
    assert [removal.to_json()[key] for key in ("stderr", "low", "high")] == [None, None, None]


def test_a_model_without_new_blocks_has_its_own_loss_and_nothing_else(make_model, tokenizer, held_out):
    model = load(make_model())
    outcome = BlockDiagnostics(**SETTINGS, **BOUNDS, confidence=0.95).run(model, tokenizer, held_out)
    assert outcome.items == HeldOutText(**SETTINGS, **BOUNDS).run(model, tokenizer, held_out).items
    diagnosis = outcome.facts()["diagnosis"]
    assert (diagnosis["blocks"], diagnosis["without_all"], diagnosis["without_candidates"]) == ([], None, None)
    assert len(diagnosis["updates"]) == 4


def test_what_cannot_be_diagnosed_is_said(tiny, saved, tokenizer, held_out, tmp_path):
    with pytest.raises(ValueError, match=r"confidence=1\.0 is not between"):
        BlockDiagnostics(**SETTINGS, **BOUNDS, confidence=1.0)
    benchmark = BlockDiagnostics(**SETTINGS, **BOUNDS, confidence=0.95)
    with pytest.raises(ValueError, match="which is not a model directory"):
        benchmark.run(tiny(), tokenizer, held_out)
    model = load(saved)
    record = json.loads((saved / "expansion.json").read_text())
    record["blocks"][0]["position"] = 9
    (tmp_path / "expansion.json").write_text(json.dumps(record))
    (tmp_path / "config.json").write_text("{}")
    model.config.name_or_path = model.name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match="names block 9, but the model has 5 blocks"):
        benchmark.run(model, tokenizer, held_out)
