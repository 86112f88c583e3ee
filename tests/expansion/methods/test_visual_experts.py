"""Visual experts by CogVLM: the plan at the paper's size, the start, what may train, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.methods.visual_experts import VisualExperts
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import content_hash
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from pipeline.training.methods.strategy import Full, Lora, apply_strategy
from tests.expansion.meta_sources import meta_source, num_parameters
from tests.expansion.methods.alone import check_loads_after_the_import_alone
from tests.visual import SETTINGS, give_sight

ROOT = Path(__file__).parents[3]
VICUNA_7B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}  # fmt: skip


def method(**changes):
    return VisualExperts(**{**SETTINGS, **changes})


def stir(directory, target):
    """What is new, as if it were trained."""
    names, generator = read_expansion(directory).new_parameters, torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in load(directory).named_parameters() if name in names}
    save_trained(directory, target, {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()})
    return target


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_text_is_its_sources_bit_for_bit_now_and_after_training(make_model, tmp_path, family, dtype):
    source = make_model(dtype, model_type=family, **({"head_dim": 8} if family == "qwen3" else {}))
    give_sight(source, tmp_path / "seeing")
    plan = read_expansion(tmp_path / "seeing")
    proof = verify_identity(source, tmp_path / "seeing", num_tokens=24)
    assert proof.exact and proof.max_abs_difference == 0 and proof.dtype == dtype
    before, after = read_index(source), read_index(tmp_path / "seeing")
    assert set(after) - set(before) == set(plan.new_parameters) and set(before) == set(plan.fixed_parameters)
    assert {t.dtype for t in after.values()} == {t.dtype for t in before.values()}
    assert all(content_hash(before[name]) == content_hash(after[name]) for name in before)
    stir(tmp_path / "seeing", tmp_path / "trained")
    assert verify_identity(source, tmp_path / "trained", num_tokens=24).exact


def test_experts_begin_as_the_text_maps_and_the_ends_of_an_image_as_zero(make_model, tmp_path):
    tensors = load_file(give_sight(make_model(model_type="qwen2"), tmp_path) / "model.safetensors")
    experts = [name for name in tensors if ".image." in name]
    assert len(experts) == 2 * (7 + 3) and {name.split(".")[2] for name in experts} == {"0", "2"}  # q, k, v have biases
    assert all(torch.equal(tensors[name], tensors[name.replace(".image.", ".")]) for name in experts)
    assert not any(tensors[f"model.{name}"].any() for name in ("boi", "eoi", "adapter.norm.bias"))
    assert torch.equal(tensors["model.adapter.norm.weight"], torch.ones(32))
    for name, inputs in (("project", 4), ("gate_proj", 32), ("up_proj", 32), ("down_proj", 64)):
        assert tensors[f"model.adapter.{name}.weight"].std() == pytest.approx(inputs**-0.5, rel=0.15)


def test_vicuna_7b_gains_the_papers_parameters():
    """6.5B are trained: 32 (4 d^2 + 3 d f) of experts, and an adapter from EVA2-CLIP-E's 1,792 features."""
    source = meta_source(VICUNA_7B)
    plan = method(expert_every=1, num_channels=1792, image_size=35, patch_size=1).plan_with(source, 0)
    d, f = 4096, 11008
    experts, adapter = 32 * (4 * d * d + 3 * d * f), 1792 * d + 3 * d * f + 4 * d
    added = sum(
        math.prod(plan.recipes[n].shape or source.tensors[plan.recipes[n].source].shape) for n in plan.new_parameters
    )
    assert added == experts + adapter and experts == 6_476_005_376
    assert num_parameters(plan, source) == 6_738_415_616 + added
    fourth = method(expert_every=4, num_channels=1792, image_size=35, patch_size=1).plan_with(source, 0)
    assert fourth.config["image_experts"] == [True, False, False, False] * 8
    assert len(fourth.new_parameters) == 8 * 7 + 8


def test_no_strategy_trains_the_text_path(make_model, tmp_path):
    give_sight(make_model(), tmp_path)
    record = read_expansion(tmp_path)
    model = apply_strategy(Full(), load(tmp_path), record)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == set(record.new_parameters) and len(trains) == 2 * 7 + 8
    with pytest.raises(ValueError, match=r"which must keep its value in a model expanded with visual_experts"):
        apply_strategy(Lora(2, None, 0.0, "all-linear"), load(tmp_path), record)
    experts = Lora(2, None, 0.0, ["image"])
    written = set(experts.writes(apply_strategy(experts, load(tmp_path), record)))
    assert written == {name for name in record.new_parameters if name.endswith(".image.weight")}


def test_by_reference_it_is_the_same_model(make_model, tmp_path):
    source = read_source(make_model("bfloat16"))
    for form in ("full", "delta"):
        write_expansion(method().plan(source), source, tmp_path / form, save=form)
    mine, theirs = (dict(load(tmp_path / form).named_parameters()) for form in ("full", "delta"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_grown_model_can_be_given_sight(make_model, tmp_path):
    source = read_source(make_model())
    write_expansion(BlockExpansion(num_groups=2).plan(source), source, tmp_path / "grown")
    give_sight(tmp_path / "grown", tmp_path / "seeing")
    assert verify_identity(make_model(), tmp_path / "seeing", num_tokens=24).exact
    assert [one.method for one in read_expansion(tmp_path / "seeing").history] == ["block", "visual_experts"]


def test_a_seeing_model_can_grow_and_new_blocks_do_nothing_to_images_either(make_model, tmp_path):
    give_sight(make_model(), tmp_path / "seeing", expert_every=1)
    source = read_source(stir(tmp_path / "seeing", tmp_path / "trained"))
    plan = write_expansion(BlockExpansion(num_groups=2).plan(source), source, tmp_path / "grown")
    assert (
        plan.config["image_experts"] == [True] * 6 and verify_identity(tmp_path / "trained", tmp_path / "grown").exact
    )
    before, after = (load(tmp_path / name) for name in ("trained", "grown"))
    ids_BT = torch.tensor([[9, *[before.config.image_token_id] * 6, 8, 7]])
    with torch.no_grad():
        first, second = (m(input_ids=ids_BT, pixel_values=torch.ones(1, 1, 4, 4)).logits for m in (before, after))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_every": 0}, "expand.expert_every=0 must be a whole number of at least 1"),
        ({"expert_every": 5}, "expand.expert_every=5 is more than the model's 4 blocks"),
        ({"patch_size": 3}, "expand.patch_size=3 does not divide expand.image_size=4"),
        ({"num_channels": 1.5}, "expand.num_channels=1.5 must be a whole number"),
    ],
)
def test_settings_are_checked_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes).check(4)


def test_what_does_not_fit_is_refused(make_model, tmp_path):
    refused = r"visual_experts stand beside the linear maps of llama, .*; this model is of model_type='gpt2'"
    with pytest.raises(ValueError, match=refused):
        method().check_models(lambda role, key: "gpt2" if key == "model_type" else None)
    with pytest.raises(ValueError, match="this model is of model_type='olmo2'"):
        method().plan(read_source(make_model(model_type="olmo2")))
    source = read_source(make_model())
    with pytest.raises(ValueError, match="a special token that begins, ends or pads no text has to stand for images"):
        method(image_token="<eos>").plan(source)
    tensors = {name: t for name, t in source.tensors.items() if name != "model.layers.2.mlp.up_proj.weight"}
    with pytest.raises(ValueError, match=r"has no tensor model.layers.2.mlp.up_proj.weight; visual_experts needs"):
        method().plan(dataclasses.replace(source, tensors=tensors))
    give_sight(make_model(), tmp_path)
    with pytest.raises(ValueError, match="this model is of model_type='visual_experts_llama'"):
        method().plan(read_source(tmp_path))


def test_what_is_known_of_the_result_before_it_is_made():
    def facts(role, key):
        return {"model_type": "qwen3"}.get(key)

    method().check_models(facts)
    assert method().facts_of(facts) == {"model_type": "visual_experts_qwen3", "num_patches": 4}


def test_the_config_names_the_fields_of_the_method():
    keys = yaml.safe_load((ROOT / "conf/expand/visual_experts.yaml").read_text())
    assert keys.pop("skip") is False and keys.pop("save") == "full"
    assert keys.pop("_target_") == f"{VisualExperts.__module__}.VisualExperts"
    assert set(keys) == {field.name for field in dataclasses.fields(VisualExperts)}
    VisualExperts(**keys).check(32)


@pytest.mark.slow
def test_what_is_written_loads_in_a_new_process_after_the_import_alone(make_model, tmp_path):
    stir(give_sight(make_model(), tmp_path / "seeing"), tmp_path / "trained")
    check_loads_after_the_import_alone(tmp_path / "trained", make_model(), "visual_experts")
