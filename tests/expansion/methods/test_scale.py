"""Widening by SCALE: the plan, its sizes and start, what trains, rounds before and after it, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.methods.leading import Leading
from pipeline.expansion.methods.scale import Scale
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import content_hash
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from pipeline.training.methods.strategy import NewBlocks
from tests.expansion.meta_sources import LLAMA_3_2_1B, meta_source, num_parameters
from tests.expansion.methods.alone import check_loads_after_the_import_alone

ROOT = Path(__file__).parents[3]
MODES = ("preserve", "adapt")


def method(mode="preserve", **changes):
    settings = {"new_features": 8, "new_key_value_heads": 1, "new_inner_features": 16, "init": "svd", "seed": 0}
    return Scale(**{"mode": mode, **settings, **changes})


def widen(source, target, mode="preserve", **changes):
    found = read_source(source)
    return write_expansion(method(mode, **changes).plan(found, None), found, target)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_widened_model_is_its_source_bit_for_bit(make_model, tmp_path, family, mode, dtype):
    source = make_model(dtype, model_type=family, **({"head_dim": 8} if family == "qwen3" else {}))
    plan = widen(source, tmp_path, mode)
    proof = verify_identity(source, tmp_path, num_tokens=24)
    assert plan.exact and proof.exact and proof.max_abs_difference == 0 and proof.dtype == dtype
    before, after = read_index(source), read_index(tmp_path)
    assert set(after) - set(before) == set(plan.new_parameters) and {t.dtype for t in after.values()} == {
        t.dtype for t in before.values()
    }
    assert all(content_hash(before[name]) == content_hash(after[name]) for name in before)


def added(mode, D, d, K, H, k, F, f, V, L):
    """In the letters of the docstring; H: query heads to a key head, L: blocks, V: rows of the embedding."""
    Q, q = H * K, H * k
    block = (q + 2 * k + 2 * f) * (D + d) + d * (Q + q) + d * (F + f) + 2 * d
    block += d * (Q + 2 * K + 2 * F) + D * (q + f) if mode == "adapt" else 0
    return L * block + 2 * V * d + d


@pytest.mark.parametrize("mode", MODES)
def test_what_it_adds_is_what_the_docstring_says(mode):
    source = meta_source(LLAMA_3_2_1B)
    plan = method(mode, new_features=256, new_key_value_heads=1, new_inner_features=1024).plan(source, None)
    expected = added(mode, D=2048, d=256, K=512, H=4, k=64, F=8192, f=1024, V=128256, L=16)
    assert num_parameters(plan, source) - 1_235_814_400 == expected
    assert sum(math.prod(plan.recipes[name].shape) for name in plan.new_parameters) == expected


def test_the_defaults_add_about_six_blocks_to_smollm2_135m():
    keys = yaml.safe_load((ROOT / "conf/expand/scale.yaml").read_text())
    d, k, f = keys["new_features"], keys["new_key_value_heads"] * 64, keys["new_inner_features"]
    assert added(keys["mode"], D=576, d=d, K=192, H=3, k=k, F=1536, f=f, V=49152, L=30) == 22_024_000
    assert 6 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576) == 21_240_576


def test_the_leading_part_of_a_matrix_by_hand(tmp_path):
    """W = diag(1, -3, 2) beside a column of zeros: U^T W has the rows of 3 and 2, largest entries positive."""
    from safetensors.torch import save_file

    from pipeline.models.files.tensor_file import read_header

    save_file({"w": torch.diag(torch.tensor([1.0, -3.0, 2.0, 0.0]))[:3].contiguous()}, tmp_path / "w.safetensors")
    stored = read_header(tmp_path / "w.safetensors")["w"]
    (value,) = Leading(0.02, 0, (2, 6))("m.new.weight", [stored])
    torch.testing.assert_close(value[:, :4], torch.tensor([[0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]))
    assert value.shape == (2, 6) and 0 < value[:, 4:].abs().max() < 0.1
    (again,), (other,) = (Leading(0.02, seed, (2, 6))("m.new.weight", [stored]) for seed in (0, 1))
    assert torch.equal(value, again) and not torch.equal(value, other)


@pytest.mark.parametrize("init", ["svd", "random"])
def test_the_start_of_each_new_parameter(make_model, tmp_path, init):
    plan = widen(make_model(), tmp_path, "adapt", init=init)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in plan.new_parameters:
        value = tensors[name]
        if ".back." in name:
            assert not value.any(), name
        elif "norm" in name:
            assert torch.equal(value, torch.ones(8)), name
        elif init == "svd" and "layers" in name:
            old = tensors[name.replace(".new.", ".")]
            rows = value[:, : old.shape[1]]
            largest = torch.linalg.svdvals(old)[: len(rows)]
            torch.testing.assert_close(rows.norm(dim=1), largest, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert 0.01 < value.std() < 0.03, name


@pytest.mark.parametrize("mode", MODES)
def test_only_what_is_new_trains_and_preserve_never_moves_an_old_feature(make_model, tmp_path, mode):
    plan = widen(make_model(), tmp_path, mode)
    model = NewBlocks().apply(load(tmp_path), read_expansion(tmp_path).new_parameters)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trainable) == set(plan.new_parameters)
    ids_BT = torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(0))
    optimizer, moved = torch.optim.SGD(trainable.values(), lr=0.5), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        moved.append({name for name, p in trainable.items() if p.grad.any()})
        optimizer.step()
    # At first what reads x_new alone has a gradient: all else of it is multiplied by 0 on its way to the loss.
    assert moved[0] == {name for name in trainable if ".back." in name} and moved[2] == set(trainable)
    with torch.no_grad():
        plain, wide = (m(input_ids=ids_BT, output_hidden_states=True) for m in (load(make_model()), model))
    same = [torch.equal(a, b[..., :32]) for a, b in zip(plain.hidden_states, wide.hidden_states, strict=True)]
    assert all(same) if mode == "preserve" else not any(same[1:])
    assert not torch.equal(plain.logits, wide.logits)


def test_a_trained_one_is_saved_and_loaded_as_it_is(make_model, tmp_path):
    plan = widen(make_model("bfloat16"), tmp_path / "wide", "adapt")
    trained = {
        name: torch.randn_like(p)
        for name, p in load(tmp_path / "wide").named_parameters()
        if name in plan.new_parameters
    }
    save_trained(tmp_path / "wide", tmp_path / "trained", trained)
    after = dict(load(tmp_path / "trained").named_parameters())
    assert len(trained) == len(plan.new_parameters) and all(torch.equal(after[n], t) for n, t in trained.items())


def test_by_reference_it_is_the_same_model(make_model, tmp_path):
    source = read_source(make_model("bfloat16"))
    plan = method("adapt").plan(source, None)
    for form in ("full", "delta"):
        write_expansion(plan, source, tmp_path / form, save=form)
    mine, theirs = (dict(load(tmp_path / form).named_parameters()) for form in ("full", "delta"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("mode", MODES)
def test_a_grown_model_can_be_widened_and_a_widened_one_can_grow(make_model, tmp_path, mode):
    """Everything that writes into the stream, old and new features alike, is zero in an identity block."""
    source = read_source(make_model())
    write_expansion(BlockExpansion(num_groups=2).plan(source), source, tmp_path / "grown")
    widen(tmp_path / "grown", tmp_path / "wide", mode)
    assert verify_identity(make_model(), tmp_path / "wide", num_tokens=24).exact
    record = read_expansion(tmp_path / "wide")
    assert [one.method for one in record.history] == ["block", "scale"] and record.last_positions == frozenset()
    trained = {n: torch.randn_like(p) * 0.1 for n, p in load(tmp_path / "wide").named_parameters() if ".new." in n}
    save_trained(tmp_path / "wide", tmp_path / "trained", trained)
    again = read_source(tmp_path / "trained")
    plan = write_expansion(BlockExpansion(num_groups=3).plan(again), again, tmp_path / "higher")
    assert verify_identity(tmp_path / "trained", tmp_path / "higher", num_tokens=24).exact
    zeros = {name.split(".", 3)[3] for name, recipe in plan.recipes.items() if recipe.kind == "zeros"}
    parts = ["weight", "new.weight"] + (["back.weight"] if mode == "adapt" else [])
    assert zeros == {f"{one}.{part}" for one in ("self_attn.o_proj", "mlp.down_proj") for part in parts}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "route"}, "expand.mode='route' is not known; use one of preserve, adapt"),
        ({"init": "zeros"}, "expand.init='zeros' is not known; use one of svd, random"),
        ({"new_features": 0}, "expand.new_features=0 must be a whole number of at least 1"),
        ({"new_inner_features": 1.5}, "expand.new_inner_features=1.5 must be a whole number"),
    ],
)
def test_settings_are_checked_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes).check(4)


def test_what_does_not_fit_is_refused(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"scale widens llama, .*; this model is of model_type='olmo2'"):
        method().plan(read_source(make_model(model_type="olmo2")), None)
    source = read_source(make_model())
    with pytest.raises(ValueError, match=r"gives model.layers.0.self_attn.o_proj.weight at most 32 new outputs, 33"):
        method(new_features=33).plan(source, None)
    assert method(new_features=33, init="random").plan(source, None).exact
    tensors = {name: t for name, t in source.tensors.items() if name != "model.layers.2.mlp.up_proj.weight"}
    with pytest.raises(ValueError, match=r"has no tensor model.layers.2.mlp.up_proj.weight; scale needs"):
        method().plan(dataclasses.replace(source, tensors=tensors), None)
    widen(make_model(), tmp_path)
    with pytest.raises(ValueError, match="this model is of model_type='scale_llama'"):
        method().plan(read_source(tmp_path), None)


def test_the_config_names_the_fields_of_the_method():
    keys = yaml.safe_load((ROOT / "conf/expand/scale.yaml").read_text())
    assert keys.pop("skip") is False and keys.pop("save") == "full"
    assert keys.pop("_target_") == f"{Scale.__module__}.Scale"
    assert set(keys) == {field.name for field in dataclasses.fields(Scale)}
    Scale(**keys).check(4)


@pytest.mark.slow
def test_what_is_written_loads_in_a_new_process_after_the_import_alone(make_model, tmp_path):
    widen(make_model(), tmp_path / "wide", "adapt")
    check_loads_after_the_import_alone(tmp_path / "wide", make_model(), "scale")
