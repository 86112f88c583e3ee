"""Mixing saved models: what is computed and what is copied, what is recorded as new, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.mixing.mix import Mix
from pipeline.expansion.pack.attach import attach, extract
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load, load_tokenizer
from pipeline.models.architecture.shape import shape_of
from pipeline.models.directory import read_config
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import content_hash
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from pipeline.reporting.stack import read_stack
from pipeline.training.methods.strategy import NewBlocks
from tests.children import PATIENCE_S

DEFAULTS = {
    "method": "linear", "t": None, "weights": None, "normalise": None, "density": 0.2, "rescale": "density", "seed": 0,
    "ancestry": "lineage",
}  # fmt: skip
UP = "model.layers.1.mlp.up_proj.weight"


def method(**settings):
    return Mix(**{**DEFAULTS, **settings})


def mix(target, model, others, save="full", **settings):
    found = read_source(model, others=others)
    return write_expansion(method(**settings).plan(found), found, target, save=save)


def hashes(directory):
    return {name: content_hash(stored) for name, stored in read_index(directory).items()}


def weights(directory):
    return load_file(directory / "model.safetensors")


@pytest.fixture
def three(make_model):
    return [make_model(seed=seed) for seed in (0, 7, 8)]


@pytest.fixture
def trained(make_model, tmp_path):
    """A grown model, and the same after its new blocks moved."""
    found = read_source(make_model("bfloat16"))
    write_expansion(BlockExpansion(num_groups=2).plan(found), found, tmp_path / "grown")
    model = load(tmp_path / "grown")
    new = read_expansion(tmp_path / "grown").module_parameters
    moved = {name: p + 0.02 * torch.randn_like(p) for name in new for p in [model.get_parameter(name)]}
    save_trained(tmp_path / "grown", tmp_path / "trained", moved)
    return tmp_path / "grown", tmp_path / "trained"


def test_linear_is_the_mean_of_two_and_weighted_of_three(three, tmp_path):
    one, two, other = map(weights, three)
    mix(tmp_path / "half", three[0], {"a": three[1]})
    assert torch.equal(weights(tmp_path / "half")[UP], (0.5 * one[UP] + 0.5 * two[UP]))
    mix(tmp_path / "three", *(three[0], dict(zip("ab", three[1:], strict=True))), weights={"model": 1, "a": 2, "b": 1})
    wanted = (one[UP] + 2 * two[UP] + other[UP]) / 4
    torch.testing.assert_close(weights(tmp_path / "three")[UP], wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how", ["linear", "slerp", "task_arithmetic"])
@pytest.mark.parametrize(("t", "which"), [(0, 0), (1, 1), (0.0, 0), (1.0, 1)])
def test_at_0_and_1_it_is_one_of_them_byte_for_byte(three, tmp_path, how, t, which):
    plan = mix(tmp_path, three[0], {"a": three[1]}, method=how, t=t)
    assert {recipe.kind for recipe in plan.recipes.values()} == {"copy"}
    assert hashes(tmp_path) == hashes(three[which])
    assert verify_identity(three[which], tmp_path, num_tokens=16).exact


@pytest.mark.parametrize("how", ["ties", "dare"])
def test_nothing_of_a_difference_is_the_base(three, tmp_path, how):
    mix(tmp_path, three[0], {"a": three[1]}, method=how, t=0)
    assert hashes(tmp_path) == hashes(three[0])


def test_t_by_depth_and_name(three, tmp_path):
    """Over four blocks 0, 1/3, 2/3, 1; outside the blocks the first number; attention as it was."""
    t = [{"filter": "self_attn", "value": 0}, {"value": [0, 1]}]
    plan = mix(tmp_path, three[0], {"a": three[1]}, t=t)
    one, two, made = weights(three[0]), weights(three[1]), weights(tmp_path)
    for block, at in enumerate((0, 1 / 3, 2 / 3, 1)):
        name = f"model.layers.{block}.mlp.up_proj.weight"
        torch.testing.assert_close(made[name], (1 - at) * one[name] + at * two[name], rtol=1e-6, atol=1e-8)
        assert torch.equal(
            made[f"model.layers.{block}.self_attn.q_proj.weight"], one[f"model.layers.{block}.self_attn.q_proj.weight"]
        )
    assert torch.equal(made["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    assert plan.recipes["model.layers.3.mlp.up_proj.weight"].source == "a:model.layers.3.mlp.up_proj.weight"


def test_weights_of_differences_are_one_each_and_t_scales_them(three, tmp_path):
    base, one, two = (weights(directory)[UP] for directory in three)
    others = dict(zip("ab", three[1:], strict=True))
    mix(tmp_path / "sum", three[0], others, method="task_arithmetic", t=0.5)
    torch.testing.assert_close(weights(tmp_path / "sum")[UP], base + 0.5 * ((one - base) + (two - base)))
    mix(tmp_path / "weighted", three[0], others, method="task_arithmetic", weights={"a": 0.25, "b": [0, 3]})
    at = 3 * 1 / 3
    torch.testing.assert_close(weights(tmp_path / "weighted")[UP], base + 0.25 * (one - base) + at * (two - base))


def test_computed_in_fp32_and_written_in_the_first_ones_dtype(make_model, tmp_path):
    model, other = make_model("bfloat16"), make_model("float32", seed=7)
    mix(tmp_path / "mixed", model, {"a": other}, t=0.3)
    wanted = 0.7 * weights(model)[UP].float() + 0.3 * weights(other)[UP]
    assert torch.equal(weights(tmp_path / "mixed")[UP], wanted.bfloat16())
    mix(tmp_path / "other", model, {"a": other}, t=1)
    assert torch.equal(weights(tmp_path / "other")[UP], weights(other)[UP].bfloat16())


@pytest.mark.parametrize("save", ["full", "delta"])
def test_what_all_hold_alike_is_copied_and_the_map_is_kept(trained, tmp_path, save):
    grown, after = trained
    plan = mix(tmp_path / "mixed", grown, {"trained": after}, save=save, t=0.3)
    before, made = hashes(grown), hashes(tmp_path / "mixed")
    changed = {name for name in before if before[name] != made[name]}
    assert changed == set(plan.new_parameters) and len(changed) == 18
    record, own = read_expansion(tmp_path / "mixed"), read_expansion(grown)
    assert dataclasses.replace(record, notes={}) == own and record.notes["mix"]["roles"] == ["model", "trained"]
    assert record.notes["mix"]["t"] == 0.3 and plan.is_carried_over and plan.exact
    model = NewBlocks().apply(load(tmp_path / "mixed"), record.module_parameters)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(own.module_parameters)
    assert "2 new" in read_stack(tmp_path / "mixed").summary


def test_mixed_on_the_way_back_it_moves_towards_the_expanded_model(trained, tmp_path):
    """WiSE-FT: at a smaller t its logits are nearer to those of the model before training."""
    grown, after = trained
    far = []
    for t in (0, 0.25, 0.5, 1):
        mix(tmp_path / f"{t}", grown, {"trained": after}, t=t)
        far.append(verify_identity(grown, tmp_path / f"{t}", num_tokens=16).max_abs_difference)
    assert far[0] == 0 < far[1] < far[2] < far[3]


def test_a_pack_of_new_blocks_that_went_part_of_the_way_back(make_model, trained, tmp_path):
    base, (grown, after) = make_model("bfloat16"), trained
    mix(tmp_path / "mixed", grown, {"trained": after}, t=0.5)
    extract(tmp_path / "mixed", base, tmp_path / "law.pack", "law")
    attach(base, [tmp_path / "law.pack"], tmp_path / "attached", save="full")
    assert hashes(tmp_path / "attached") == hashes(tmp_path / "mixed")


def test_of_different_expansions_nothing_is_recorded_as_new_and_that_is_said(make_model, tmp_path):
    for position in ("prefix", "suffix"):
        found = read_source(make_model())
        plan = BlockExpansion(num_groups=2, position=position).plan(found)
        write_expansion(plan, found, tmp_path / position)
    with pytest.warns(UserWarning, match=r"model and a record different expansions, so that nothing in the mix is new"):
        plan = mix(tmp_path / "mixed", tmp_path / "prefix", {"a": tmp_path / "suffix"})
    record = read_expansion(tmp_path / "mixed")
    assert record.blocks == () and record.new_parameters == () and not record.exact and plan.method == "mix"
    with pytest.raises(ValueError, match="strategy new_blocks found no new parameters"):
        NewBlocks().apply(load(tmp_path / "mixed"), record.module_parameters)


def test_models_without_an_expansion_mix_without_a_word(three, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = mix(tmp_path, three[0], {"a": three[1]}, t=0.5)
    record = read_expansion(tmp_path)
    assert record.method == "mix" and record.new_parameters == () and not plan.exact
    assert record.settings == {key: value for key, value in {**DEFAULTS, "t": 0.5}.items() if value is not None}


def test_stock_transformers_loads_it_in_a_new_process(three, tmp_path):
    mix(tmp_path, three[0], {"a": three[1]}, method="slerp")
    code = (
        "import sys, transformers; m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "t = transformers.AutoTokenizer.from_pretrained(sys.argv[1]); "
        "assert not any(name.split('.')[0] == 'pipeline' for name in sys.modules); print(len(t('mixed').input_ids))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) == len(load_tokenizer(three[0])("mixed").input_ids)
    assert read_config(tmp_path) == read_config(three[0])


def test_a_mixture_of_dare_is_drawn_from_the_seed(three, tmp_path):
    made = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        mix(tmp_path / name, three[0], {"a": three[1]}, method="dare", seed=seed)
        made[name] = hashes(tmp_path / name)
    assert made["one"] == made["again"] and made["one"][UP] != made["other"][UP]


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "mean"}, "method='mean' is not known; use one of linear, slerp"),
        ({"method": "dare", "rescale": "l2"}, "rescale='l2' is not known; use one of density, l1, none"),
        ({"t": "half"}, "t='half' must be a number"),
        ({"t": float("inf")}, "t=inf must be a finite number"),
        ({"method": "ties", "density": 0}, "density=0 must be above 0"),
        ({"method": "ties", "density": 1.2}, "density=1.2 must be a finite number from 0 to 1"),
        ({"method": "slerp", "weights": {"a": 1}}, "is not read by method=slerp"),
        ({"t": 0.5, "weights": {"model": 1, "a": 1}}, "goes by t=0.5 or by weights, not by both"),
        ({"weights": {"model": 1, "a": "x"}}, "weights.a='x' must be a number"),
    ],
)
def test_settings_are_refused_before_any_work(settings, message):
    for check in (lambda one: one.check(4), lambda one: one.check_models(told())):  # at a depth that is not known, too
        with pytest.raises(ValueError, match=message):
            check(method(**settings))


def told(roles=("a",), **facts):
    """Facts of models: what is given, by key and role, over a small Llama."""
    config = {
        "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    known = {"model_type": "llama", "num_blocks": 4, "expanded": False, "derived": True, "shape": shape_of(config)}
    changed = {key: (shape_of({**config, **value}) if key == "shape" else value) for key, value in facts.items()}

    def fact(role, key):
        return changed.get(key, known.get(key)) if role == "a" else known.get(key)

    return type("Facts", (), {"roles": roles, "__call__": staticmethod(fact)})()


@pytest.mark.parametrize(
    ("settings", "facts", "message"),
    [
        ({}, told(()), "a mix needs a second model"),
        (
            {"method": "slerp"},
            told(("a", "b")),
            "slerp mixes two models by t, from has 3; use method=linear with weights",
        ),
        ({}, told(("a", "b")), "linear mixes two models by t, from has 3; give weights"),
        ({"weights": {"a": 1}}, told(), "weights has a; method=linear needs one for each of model, a"),
        ({"method": "ties", "weights": {"a": 1, "model": 1}}, told(), "method=ties needs one for each of a, the roles"),
        ({}, told(model_type="mistral"), "model_type is llama in the role model and mistral in the role a"),
        ({}, told(num_blocks=6), "num_blocks is 4 in the role model and 6 in the role a"),
        ({}, told(shape={"vocab_size": 301}), "vocabulary is 300 in the role model and 301 in the role a"),
        ({}, told(shape={"tie_word_embeddings": False}), "tie_word_embeddings is True in the role model and False"),
        ({}, told(shape={"hidden_size": 64}), "hidden_size is 32 in the role model and 64"),
        ({}, told(shape={"intermediate_size": 96}), "shape of block 0 is "),
        ({"method": "task_arithmetic"}, told(derived=False), "that in the role a was not made from it"),
    ],
)
def test_models_that_do_not_go_together_are_refused_before_any_work(settings, facts, message):
    with pytest.raises(ValueError, match=message):
        method(**settings).check_models(facts)


def test_models_that_go_together_are_not():
    for how in ("linear", "slerp", "task_arithmetic", "ties", "dare"):
        method(method=how).check_models(told())
    method(method="slerp").check_models(told(derived=False))
    method().check_models(told(num_blocks=None, model_type=None))
    assert method().facts_of(told(expanded=None))["expanded"] is False
    assert method().facts_of(told())["num_blocks"] == 4


def changed(make_model, tmp_path, config=None, tensors=None, **settings):
    """A copy of a tiny model with other files."""
    directory = shutil.copytree(make_model(seed=7, **settings), tmp_path / "changed")
    if config:
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    if tensors:
        save_file(tensors(weights(directory)), directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"vocab_size": 310}, "vocab_size is 300 in the role model and 310 in the role a"),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 4 in the role model and 5"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is True in the role model and False"),
        ({"model_type": "mistral"}, "model_type is llama in the role model and mistral"),
        ({"config": {"rms_norm_eps": 1e-3}}, "rms_norm_eps is 1e-06 in the role model and 0.001"),
        ({"config": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}}, "rope_parameters is "),
        (
            {"tensors": lambda t: {n: v for n, v in t.items() if n != UP}},
            f"{UP} is in the files of the model in the role",
        ),
        ({"tensors": lambda t: {**t, UP: t[UP][:60].clone()}}, rf"the shape of {UP} is \[64, 32\] .* and \[60, 32\]"),
    ],
)
def test_files_that_do_not_go_together_are_refused(make_model, tmp_path, other, message):
    source = read_source(make_model(), others={"a": changed(make_model, tmp_path, **other)})
    with pytest.raises(ValueError, match=message):
        method().plan(source)


def test_ids_of_tokens_and_lengths_may_differ(make_model, tmp_path):
    config = {"eos_token_id": 5, "pad_token_id": 5, "max_position_embeddings": 128, "attention_dropout": 0.1}
    other = changed(make_model, tmp_path, config=config)
    mix(tmp_path / "mixed", make_model(), {"a": other})
    assert read_config(tmp_path / "mixed") == read_config(make_model())


def test_another_vocabulary_of_the_same_size_is_refused(make_model, tmp_path):
    other = changed(make_model, tmp_path)
    record = json.loads((other / "tokenizer.json").read_text())
    vocabulary = record["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"the id of token .* is .* in the role model and .* in the role a"):
        method().plan(read_source(make_model(), others={"a": other}))


def test_weights_that_cancel_out_and_misspelt_filters_are_refused(three):
    source = read_source(three[0], others={"a": three[1]})
    with pytest.raises(ValueError, match=r"the weights of .* sum to 0, by which they are to be divided"):
        method(weights={"model": 1, "a": -1}).plan(source)
    with pytest.raises(ValueError, match="t has the filter 'self_atn', which is part of no tensor's name"):
        method(t=[{"filter": "self_atn", "value": 1}, {"value": 0.5}]).plan(source)


def test_models_made_elsewhere_show_by_their_weights_that_one_came_from_the_other(three, trained, tmp_path):
    source = read_source(three[0], others={"a": three[1]})
    with pytest.raises(
        ValueError, match=r"in the roles model and a have a cosine of -?0\.0\d, .* method=linear or slerp"
    ):
        method(method="ties", ancestry="weights").plan(source)
    mix(tmp_path / "mixed", trained[0], {"a": trained[1]}, method="ties", ancestry="weights")
    method(method="ties", ancestry="weights").check_models(told(derived=False))
    method(ancestry="weights").plan(source)  # reads no differences


def test_models_with_packs_are_refused(three):
    source = read_source(three[0], others={"a": three[1]})
    packed = dataclasses.replace(source.expansion, packs=(SimpleNamespace(to_json=dict),))
    with pytest.raises(ValueError, match="the model in the role model has packs attached; detach them, mix"):
        method().plan(dataclasses.replace(source, expansion=packed))


PLAN = """
import sys
from pathlib import Path
from pipeline.expansion.mixing.mix import Mix
from pipeline.expansion.source import read_source

model, other, memory = map(Path, sys.argv[1:4])
for method in ("linear", "slerp", "ties", "dare"):
    plan = Mix(method, None, None, None, 0.5, "density", 0, "lineage").plan(read_source(model, memory, {"a": other}))
    assert any(recipe.kind == "computed" for recipe in plan.recipes.values())
print(sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
"""


def test_a_mix_of_known_models_is_planned_without_torch(three, tmp_path):
    found = read_source(three[0], tmp_path / "memory", {"a": three[1]})
    method().plan(found)
    found.anatomy.save()
    command = [sys.executable, "-c", PLAN, *map(str, three[:2]), str(tmp_path / "memory")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
