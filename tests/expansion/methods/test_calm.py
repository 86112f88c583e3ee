"""Composing two saved models: the plan, the written model, what trains, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.methods.calm import Calm
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load, load_tokenizer
from pipeline.models.architecture.facts import model_facts
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import content_hash
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from pipeline.training.kernels.attention import choose_attention
from pipeline.training.kernels.document_separation import mixes_documents
from pipeline.training.kernels.head import PLAIN, head_of
from pipeline.training.methods.strategy import Full, Lora, NewBlocks, apply_strategy
from tests.composed import SMALLER, compose
from tests.expansion.methods.alone import check_loads_after_the_import_alone

ROOT = Path(__file__).parents[3]
BRIDGES = [f"model.layers.{i}.bridge.{rest}.weight" for i in (1, 3) for rest in ("project", "q", "k", "v", "o")]


@pytest.fixture(scope="session")
def pair(make_model):
    """An anchor and a smaller augmenting model of another family with one tokenizer."""
    return make_model("bfloat16"), make_model("bfloat16", seed=1, model_type="qwen3", **SMALLER)


@pytest.fixture(scope="session")
def composed(pair, tmp_path_factory):
    return compose(*pair, tmp_path_factory.mktemp("composed"))


def read(anchor, augmenting):
    return read_source(anchor, None, {"augmenting": augmenting})


def test_the_plan(pair):
    source = read(*pair)
    plan = Calm(2, 0).plan(source)
    assert plan.new_parameters == tuple(BRIDGES) and plan.exact and plan.blocks == ()
    assert plan.config["bridges"] == [None, 1, None, 3] and plan.config["model_type"] == "calm_llama"
    assert plan.config["augmenting"]["model_type"] == "qwen3" and plan.config["hidden_size"] == 32
    fixed, other = set(plan.fixed_parameters), read_index(pair[1])
    assert len(fixed) == len(other) and all(name.startswith("model.augmenting.") for name in fixed)
    assert {plan.recipes[name].source for name in fixed} == {f"augmenting:{name}" for name in other}
    for name in BRIDGES:
        assert plan.recipes[name].kind == ("zeros" if name.endswith(".o.weight") else "random")
    assert plan.recipes[BRIDGES[0]].shape == (32, 24) and plan.recipes[BRIDGES[1]].shape == (32, 32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_its_anchor_bit_for_bit(make_model, tmp_path, dtype):
    anchor, other = make_model(dtype), make_model(dtype, seed=1, model_type="mistral")
    compose(anchor, other, tmp_path)
    proof = verify_identity(anchor, tmp_path, num_tokens=24)
    assert proof.exact and proof.cached_logits_equal and proof.dtype == dtype
    before, after = read_index(anchor), read_index(tmp_path)
    assert all(content_hash(before[name]) == content_hash(after[name]) for name in before)
    model, augmenting = load(tmp_path), load(other)
    mine, theirs = model.model.augmenting.state_dict(), augmenting.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_untied_head_of_the_augmenting_model_stays_away(make_model, tmp_path):
    other = make_model(seed=1, tie_word_embeddings=False)
    compose(make_model(), other, tmp_path)
    assert "lm_head.weight" in read_index(other) and not any("lm_head" in name for name in read_index(tmp_path))


@pytest.mark.parametrize(
    ("every", "blocks", "augmenting", "expected"),
    [
        (4, 8, 8, {3: 3, 7: 7}),
        (4, 32, 24, {4: 3, 9: 7, 15: 11, 20: 15, 25: 19, 31: 23}),
        (1, 3, 2, {0: 0, 2: 1}),
        (2, 4, 5, {1: 1, 3: 3}),
    ],
)
def test_bridges_stand_evenly(every, blocks, augmenting, expected):
    found = Calm(every, 0).bridges(blocks, augmenting)
    assert len(found) == blocks and {block: reads for block, reads in enumerate(found) if reads is not None} == expected


def test_new_blocks_trains_the_bridges_alone(composed):
    record = read_expansion(composed)
    model = apply_strategy(NewBlocks(), load(composed), record)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(BRIDGES)


def test_no_strategy_trains_the_augmenting_model(composed):
    record = read_expansion(composed)
    model = apply_strategy(Full(), load(composed), record)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(BRIDGES) < trained and not any(".augmenting." in name for name in trained)
    with pytest.raises(ValueError, match=r"would change model.augmenting.* a model expanded with calm"):
        apply_strategy(Lora(2, None, 0.0, "all-linear"), load(composed), record)
    anchors = r"model\.layers\.\d+\.self_attn\.q_proj"
    adapted = apply_strategy(Lora(2, None, 0.0, anchors), load(composed), record)
    assert sum(p.requires_grad for p in adapted.parameters()) == 2 * 4


def test_the_training_loop_takes_it_as_any_llama(composed):
    """Packed rows, the loss in chunks, and the attention kernels that know documents."""
    model = load(composed)
    assert not mixes_documents(model) and head_of(model) == PLAIN
    assert choose_attention(model, "auto", torch.device("cpu")) == "documents"
    configs = (model.config, model.config.augmenting, model.model.augmenting.config)
    assert {config._attn_implementation for config in configs} == {"llama_pro_documents"}


def test_a_composed_model_can_grow(composed, tmp_path):
    """A copied block has a bridge of its own if its origin has one, to the same block, of which W_O is zero."""
    trained = {name: torch.randn_like(p) for name, p in load(composed).named_parameters() if name in BRIDGES}
    save_trained(composed, tmp_path / "trained", trained)
    source = read_source(tmp_path / "trained")
    assert source.anatomy.writers(1) == ("bridge.o.weight", "mlp.down_proj.weight", "self_attn.o_proj.weight")
    plan = write_expansion(BlockExpansion(num_groups=2).plan(source), source, tmp_path / "grown")
    assert plan.config["bridges"] == [None, 1, 1, None, 3, 3]
    assert verify_identity(tmp_path / "trained", tmp_path / "grown", num_tokens=24).exact
    record = read_expansion(tmp_path / "grown")
    assert set(read_expansion(composed).fixed_parameters) == set(record.fixed_parameters)


def test_by_reference_it_is_the_same_model(pair, tmp_path):
    source = read(*pair)
    for form in ("full", "delta"):
        write_expansion(Calm(2, 0).plan(source), source, tmp_path / form, save=form)
    whole, referred = (dict(load(tmp_path / form).named_parameters()) for form in ("full", "delta"))
    assert whole.keys() == referred.keys() and all(torch.equal(whole[name], referred[name]) for name in whole)
    assert set(read_index(tmp_path / "delta")) == set(read_index(tmp_path / "full"))


def test_the_tokenizer_comes_along(composed, pair):
    text = "composed <|im_end|> été"
    assert load_tokenizer(composed)(text).input_ids == load_tokenizer(pair[0])(text).input_ids


@pytest.mark.parametrize("role", ["model", "augmenting"])
@pytest.mark.parametrize("kind", ["olmo2", "calm_llama"])
def test_another_family_is_refused(make_model, composed, role, kind):
    other = composed if kind == "calm_llama" else make_model(model_type=kind)
    models = {"model": make_model(), "augmenting": make_model(), role: other}
    with pytest.raises(ValueError, match=rf"in the role {role} is of model_type='{kind}'. Use two of"):
        Calm(2, 0).plan(read(models["model"], models["augmenting"]))
    facts = {name: model_facts(directory) for name, directory in models.items()}
    with pytest.raises(ValueError, match=rf"in the role {role} is of model_type='{kind}'. Use two of"):
        Calm(2, 0).check_models(lambda role, key: facts[role].get(key))


def test_ministral_is_refused(make_model):
    kinds = ["sliding_attention", "full_attention"] * 2
    other = make_model(model_type="mistral", layer_types=kinds, sliding_window=8)
    source = read(make_model(), other)
    source.others["augmenting"].config["layer_types"] = kinds
    with pytest.raises(ValueError, match="model_type='ministral'"):
        Calm(2, 0).plan(source)


@pytest.fixture
def of_other_tokens(make_model, tmp_path):
    """The anchor with two tokens changed for each other in its tokenizer."""
    directory = shutil.copytree(make_model(), tmp_path / "other")
    record = json.loads((directory / "tokenizer.json").read_text())
    words = record["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (directory / "tokenizer.json").write_text(json.dumps(record))
    return directory


def test_unequal_tokenizers_are_refused_before_work_and_when_planned(make_model, of_other_tokens):
    facts = {"model": model_facts(make_model()), "augmenting": model_facts(of_other_tokens)}
    with pytest.raises(ValueError, match="compose models with one tokenizer"):
        Calm(2, 0).check_models(lambda role, key: facts[role].get(key))
    with pytest.raises(ValueError, match="compose models with one tokenizer"):
        Calm(2, 0).plan(read(make_model(), of_other_tokens))


def test_what_is_not_known_beforehand_is_not_refused(make_model):
    Calm(2, 0).check_models(lambda role, key: None)
    known = model_facts(make_model())
    Calm(2, 0).check_models(lambda role, key: known[key])


def test_sizes_that_do_not_fit_are_refused(make_model):
    with pytest.raises(ValueError, match="attention heads do not divide its 32 features"):
        Calm(2, 0).plan(
            read(make_model(model_type="qwen3", num_attention_heads=3, num_key_value_heads=3, head_dim=8), make_model())
        )
    with pytest.raises(ValueError, match="embeds 300 tokens and the anchor 320"):
        Calm(2, 0).plan(read(make_model(vocab_size=320), make_model()))
    with pytest.raises(ValueError, match=r"expand.every=5 makes 0 bridges from an augmenting model of 4 blocks"):
        Calm(5, 0).plan(read(make_model(), make_model()))
    with pytest.raises(ValueError, match=r"expand.every=0 must be at least 1"):
        Calm(0, 0).check(4)


@pytest.mark.slow
def test_what_is_written_loads_in_a_new_process_after_the_import_alone(composed, tmp_path):
    """By the Auto classes; without the import the model type is not known to them."""
    check_loads_after_the_import_alone(composed, composed, "calm")
