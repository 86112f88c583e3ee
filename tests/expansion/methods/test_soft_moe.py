"""Widening a saved model: the plan, the written model, what trains, and rounds before and after it."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.data.corpus import Workspace
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.methods.soft_moe import SoftMoe
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load, load_tokenizer
from pipeline.models.directory import read_config
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import content_hash, read_bytes, read_header
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from pipeline.training.methods.strategy import Full, NewBlocks
from tests.expansion.methods.alone import check_loads_after_the_import_alone

ROOT = Path(__file__).parents[3]
ADDED = [f"model.layers.{i}.mlp.{rest}" for i in range(4) for rest in ("second_down_proj.weight", "mixing")]
FAMILIES = {
    "llama": {},
    "llama with biases, not tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
}


def plan_of(source, directory, mode="exact"):
    return SoftMoe(mode).plan(source, Workspace(None, None, directory, lambda **fields: None))


def widen(source, target, mode="exact"):
    found = read_source(source)
    return write_expansion(plan_of(found, target.parent / f"{target.name}-scratch", mode), found, target)


def grow(source, target):
    found = read_source(source)
    return write_expansion(BlockExpansion(num_groups=2).plan(found), found, target)


@pytest.mark.parametrize("mode", ["exact", "faithful"])
def test_the_plan(make_model, tmp_path, mode):
    source = read_source(make_model("bfloat16"))
    plan = plan_of(source, tmp_path, mode)
    assert sorted(plan.new_parameters) == sorted(ADDED) and plan.blocks == () and plan.exact == (mode == "exact")
    assert [slot.source for slot in plan.stack] == [0, 1, 2, 3] and not any(slot.new for slot in plan.stack)
    for name, recipe in plan.recipes.items():
        kind = "copy" if name in source.tensors else "made" if name.endswith("mixing") else "zeros"
        assert recipe.kind == kind and recipe.source in source.tensors
    assert plan.config == {
        **source.config, "model_type": "soft_moe_llama", "base_model_type": "llama", "mode": mode,
        "architectures": ["SoftMoeLlamaForCausalLM"],
    }  # fmt: skip
    made = read_header(plan.made)
    assert sorted(made) == sorted(name for name in ADDED if name.endswith("mixing"))
    assert all(t.dtype == "F32" and t.shape == (2,) for t in made.values())
    assert {read_bytes(t) for t in made.values()} == {struct.pack("<2f", 1.0, 0.0)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_its_source_bit_for_bit(make_model, tmp_path, family, dtype):
    source = make_model(dtype, **{"model_type": family.split()[0], **FAMILIES[family]})
    widen(source, tmp_path)
    proof = verify_identity(source, tmp_path, num_tokens=24)
    assert proof.exact and proof.max_abs_difference == 0 and proof.dtype == dtype
    before, after = read_index(source), read_index(tmp_path)
    assert set(after) - set(before) == set(ADDED)
    assert all(content_hash(before[name]) == content_hash(after[name]) for name in before)
    assert {after[n].dtype for n in ADDED if "second" in n} == {before["model.layers.0.mlp.down_proj.weight"].dtype}
    assert {after[n].dtype for n in ADDED if "mixing" in n} == {"F32"}


def test_faithful_is_not_and_says_so(make_model, tmp_path):
    plan = widen(make_model(), tmp_path, "faithful")
    proof = verify_identity(make_model(), tmp_path, num_tokens=24)
    assert not plan.exact and not proof.exact and proof.max_abs_difference > 0
    record = read_expansion(tmp_path)
    assert record.method == "soft_moe" and record.settings == {"mode": "faithful"} and not record.exact
    assert sorted(record.new_parameters) == sorted(ADDED) and record.blocks == ()


def test_only_what_was_added_trains(make_model, tmp_path):
    widen(make_model(), tmp_path)
    model = NewBlocks().apply(load(tmp_path), read_expansion(tmp_path).new_parameters)
    ids_BT = torch.randint(0, 300, (2, 8))
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad} == set(ADDED)
    assert set(NewBlocks().trained(model)) == set(ADDED)


def test_a_trained_mixture_is_saved_as_it_is(make_model, tmp_path):
    widen(make_model("bfloat16"), tmp_path / "wide")
    model = Full().apply(load(tmp_path / "wide"), [])
    trained = {name: torch.randn_like(p) for name, p in model.named_parameters() if name in ADDED}
    save_trained(tmp_path / "wide", tmp_path / "trained", trained)
    after = dict(load(tmp_path / "trained").named_parameters())
    assert all(torch.equal(after[name], trained[name]) for name in ADDED)
    assert after[ADDED[1]].dtype == torch.float32 and read_config(tmp_path / "trained") == read_config(
        tmp_path / "wide"
    )


def test_the_tokenizer_comes_along(make_model, tmp_path):
    widen(make_model(), tmp_path)
    text = "widened <|im_end|> été"
    assert load_tokenizer(tmp_path)(text).input_ids == load_tokenizer(make_model())(text).input_ids


def test_a_grown_model_can_be_widened(make_model, tmp_path):
    grow(make_model(), tmp_path / "grown")
    widen(tmp_path / "grown", tmp_path / "wide")
    assert verify_identity(make_model(), tmp_path / "wide", num_tokens=24).exact
    grown, record = read_expansion(tmp_path / "grown"), read_expansion(tmp_path / "wide")
    assert record.blocks == grown.blocks and len(record.new_parameters) == 2 * 6
    assert [one.method for one in record.history] == ["block", "soft_moe"]
    assert record.rounds[0].new_parameters == grown.new_parameters
    assert grown.last_positions == {2, 5} and record.last_positions == frozenset()


def test_a_widened_model_can_grow(make_model, tmp_path):
    """Both output matrices of a mixture are residual writers, so its identity block has both of them zero."""
    widen(make_model(), tmp_path / "wide", "faithful")
    model = load(tmp_path / "wide")
    trained = {name: torch.randn_like(p) for name, p in model.named_parameters() if name in ADDED}
    save_trained(tmp_path / "wide", tmp_path / "trained", trained)
    grow(tmp_path / "trained", tmp_path / "grown")
    assert verify_identity(tmp_path / "trained", tmp_path / "grown", num_tokens=24).exact
    tensors = load_file(tmp_path / "grown" / "model.safetensors")
    for rest in ("self_attn.o_proj", "mlp.down_proj", "mlp.second_down_proj"):
        assert not tensors[f"model.layers.2.{rest}.weight"].any()
    assert torch.equal(tensors["model.layers.2.mlp.mixing"], trained["model.layers.1.mlp.mixing"].detach())


def test_an_unknown_mode_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"expand.mode='soft' is not known; use one of exact, faithful"):
        SoftMoe("soft").check(4)


def test_another_architecture_is_refused(make_model, tmp_path):
    source = read_source(make_model(model_type="olmo2"))
    with pytest.raises(ValueError, match=r"of llama, mistral, qwen2, qwen3; this model is of model_type='olmo2'"):
        plan_of(source, tmp_path)


def test_a_widened_model_is_not_widened_again(make_model, tmp_path):
    widen(make_model(), tmp_path)
    with pytest.raises(ValueError, match="this model is of model_type='soft_moe_llama'"):
        plan_of(read_source(tmp_path), tmp_path)


def test_missing_ffn_weights_are_named(make_model, tmp_path):
    source = read_source(make_model())
    name = "model.layers.2.mlp.down_proj.weight"
    tensors = {n: t for n, t in source.tensors.items() if n != name}
    with pytest.raises(ValueError, match=f"has no tensor {name}"):
        plan_of(dataclasses.replace(source, tensors=tensors), tmp_path)


def test_the_config_names_the_fields_of_the_method():
    file = Path(__file__).parents[3] / "conf" / "expand" / "soft_moe.yaml"
    keys = yaml.safe_load(file.read_text())
    assert (
        keys.pop("skip") is False
        and keys.pop("save") == "full"
        and keys.pop("_target_") == f"{SoftMoe.__module__}.SoftMoe"
    )
    assert set(keys) == {field.name for field in dataclasses.fields(SoftMoe)}
    SoftMoe(**keys).check(4)


def test_rounds_hold_a_widening(make_model, tmp_path):
    widen(make_model(), tmp_path / "wide")
    grow(tmp_path / "wide", tmp_path / "grown")
    record, moved = read_expansion(tmp_path / "grown"), (0, 1, 3, 4)
    assert [(one.method, one.round) for one in record.rounds] == [("soft_moe", 1)]
    expected = {f"model.layers.{i}.mlp.{rest}" for i in moved for rest in ("second_down_proj.weight", "mixing")}
    assert set(record.rounds[0].new_parameters) == expected
    assert [block.round for block in record.blocks] == [2, 2]


def test_by_reference_it_is_the_same_model(make_model, tmp_path):
    source = read_source(make_model("bfloat16"))
    plan = plan_of(source, tmp_path / "scratch", "faithful")
    for form in ("full", "delta"):
        write_expansion(plan, source, tmp_path / form, save=form)
    whole, referred = load(tmp_path / "full"), load(tmp_path / "delta")
    assert type(whole) is type(referred) and referred.dtype == torch.bfloat16
    mine, theirs = dict(whole.named_parameters()), dict(referred.named_parameters())
    assert mine.keys() == theirs.keys() and {mine[name].dtype for name in ADDED} == {torch.bfloat16, torch.float32}
    assert all(mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_what_is_written_loads_in_a_new_process_after_the_import_alone(make_model, tmp_path):
    """By stock transformers' Auto classes; without the import the model type is not known to them."""
    source = read_source(make_model())
    write_expansion(plan_of(source, tmp_path / "scratch", "exact"), source, tmp_path / "wide")
    check_loads_after_the_import_alone(tmp_path / "wide", source.directory, "soft_moe")
