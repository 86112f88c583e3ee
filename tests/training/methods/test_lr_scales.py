"""A new block's own learning rate: recorded by the expansion, given to its parameters alone, scheduled with all."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.packing.mixture import PackedStream
from pipeline.data.tokens.store import TokenStore
from pipeline.models import load
from pipeline.records.expansion import ExpansionMap, NewBlock
from pipeline.training.fit import fit
from pipeline.training.methods.optim import build_adamw, set_learning_rate
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from pipeline.training.settings import Settings
from tests.training import knobs

LAUNCH = {"checkpoint_every_s": 1e9, "keep_checkpoints": 1}
SETTINGS = {
    **knobs.SETTINGS, "seq_len": 32, "batch_size": 2, "num_steps": 2, "warmup_ratio": 0.0, "max_grad_norm": 1e9,
    "spike_sigmas": None, "validate_every": 10, "validation_tokens": 32,
}  # fmt: skip


def record(scales):
    """What is recorded of an expansion to twelve blocks, of which these positions are new."""
    rests = ("mlp.down_proj.weight", "input_layernorm.weight")
    names = tuple(f"model.layers.{position}.{rest}" for position in scales for rest in rests)
    blocks = tuple(NewBlock(position, position - 1, lr_scale=scale) for position, scale in scales.items())
    return ExpansionMap(blocks=blocks, new_parameters=names)


def test_scales_are_by_whole_block_and_only_what_is_not_1():
    expansion = record({1: 0.5, 10: 1.0, 11: 1.5})
    names = (*expansion.module_parameters, "model.layers.11.mlp.experts.1.up_proj.weight")
    expansion = replace(expansion, module_parameters=names)
    assert NewBlocks().lr_scales(expansion) == {
        "model.layers.1.mlp.down_proj.weight": 0.5,
        "model.layers.1.input_layernorm.weight": 0.5,
        "model.layers.11.mlp.down_proj.weight": 1.5,
        "model.layers.11.input_layernorm.weight": 1.5,
        "model.layers.11.mlp.experts.1.up_proj.weight": 1.5,
    }


def test_an_earlier_rounds_block_keeps_its_scale_to_itself():
    """What a second round trains is its own blocks, whatever the first said of others."""
    expansion = record({2: 0.5, 5: 1.5})
    names = tuple(name for name in expansion.module_parameters if ".5." in name)
    expansion = replace(expansion, module_parameters=names)
    assert {name.split(".")[2] for name in NewBlocks().lr_scales(expansion)} == {"5"}


def test_records_without_scales_and_other_strategies_have_none():
    blocks, names = [{"position": 1, "origin": 0}], ["model.layers.1.mlp.down_proj.weight", "a.b"]
    assert NewBlocks().lr_scales(ExpansionMap.from_json({"blocks": blocks, "new_parameters": names})) == {}
    assert NewBlocks().lr_scales(ExpansionMap()) == {}
    for strategy in (Full(), Lora(4, 8, 0.0, "all-linear")):
        assert strategy.lr_scales(record({1: 0.5})) == {}


def test_groups_are_by_scale_and_decay_and_the_schedule_reaches_all(make_model):
    model = load(make_model())
    scales = {n: 0.5 if ".layers.1." in n else 1.5 for n, _ in model.named_parameters() if ".layers." in n}
    optimizer = build_adamw(model.named_parameters(), 1e-3, (0.9, 0.95), 1e-8, 0.1, scales)
    found = [(group["lr_scale"], group["weight_decay"], group["lr"]) for group in optimizer.param_groups]
    assert found == [
        (0.5, 0.1, 5e-4), (0.5, 0.0, 5e-4), (1.0, 0.1, 1e-3), (1.0, 0.0, 1e-3), (1.5, 0.1, 1.5e-3), (1.5, 0.0, 1.5e-3),
    ]  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        assert all(scales.get(names[id(p)], 1.0) == group["lr_scale"] for p in group["params"])
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    set_learning_rate(optimizer, 2e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3, 2e-3, 2e-3, 3e-3, 3e-3]


@pytest.fixture
def expanded(make_model, tmp_path):
    """A model whose blocks 1 and 3 are said to be new."""

    def make(scales):
        folder = shutil.copytree(make_model("float32"), tmp_path / f"model-{len(list(tmp_path.iterdir()))}")
        names = load_file(folder / "model.safetensors")
        new = tuple(n for n in names if any(f".layers.{p}." in n for p in scales))
        found = replace(record(scales), new_parameters=new, module_parameters=new)
        (folder / "expansion.json").write_text(found.to_text())
        return folder

    return make


def train(source, run):
    tokens = np.random.default_rng(0).integers(3, 40, 2000).astype(np.uint16)
    store = TokenStore("a", tokens, np.arange(0, 2001, 50), None)
    runtime, device = knobs.launched(run, launch=LAUNCH)
    stream = PackedStream([store], {"a": 1.0}, 32, 0, packing="fill")
    fit(source, run / "model", NewBlocks(), Settings(**SETTINGS), stream, {}, runtime, device)
    return load_file(run / "model" / "model.safetensors")


def test_a_block_of_scale_0_stays_and_another_trains(expanded, tmp_path):
    scaled = expanded({1: 1.0, 3: 0.0})
    before, after = load_file(scaled / "model.safetensors"), train(scaled, tmp_path / "scaled")
    moved = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"1"}


def test_the_first_step_of_adam_is_proportional_to_the_scale(expanded, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "num_steps", 1)
    monkeypatch.setitem(SETTINGS, "weight_decay", 0.0)
    source = expanded({1: 1.0, 3: 1.0})
    before, name = load_file(source / "model.safetensors"), "model.layers.3.mlp.up_proj.weight"
    step = train(source, tmp_path / "one")[name] - before[name]
    other = train(expanded({1: 1.0, 3: 0.25}), tmp_path / "quarter")[name] - before[name]
    torch.testing.assert_close(other, 0.25 * step, rtol=0, atol=1e-6)
    assert step.abs().max() > 5e-3
