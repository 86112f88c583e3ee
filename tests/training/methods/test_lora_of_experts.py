"""LoRA of experts that transformers stacks in one parameter: what is trained is saved, and what is not is said."""

import warnings

import pytest
import torch
import transformers

from pipeline.models import load
from pipeline.training.methods.carried_lora import CarriedLora
from pipeline.training.methods.strategy import Lora
from tests.expansion.architectures import EXACT
from tests.expansion.test_architectures import saved
from tests.training.test_architectures import weights_in
from tests.training.test_fit import store as store
from tests.training.test_fit import train, weights

SETTINGS = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}


def made(name, strategy):
    causal = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**EXACT[name]))
    return strategy.apply(causal, [])


@pytest.mark.parametrize(
    "name",
    ["Mixtral", pytest.param("OLMoE", marks=pytest.mark.slow), pytest.param("DeepSeek-V2", marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:strategy lora with target_modules")
def test_experts_are_trained_and_saved(name, store, tmp_path):
    source = saved(EXACT[name], tmp_path / "source")
    train(source, tmp_path / "run", store, Lora(**SETTINGS), num_steps=2, warmup_ratio=0.0)
    before, after = weights_in(source), weights(tmp_path / "run")
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert before.keys() == after.keys()
    for part in ("experts", "self_attn"):
        assert any(part in n for n in moved), part
    assert all(n.endswith("weight") and "norm" not in n and "embed" not in n for n in moved)


def test_an_adapter_of_experts_goes_on_where_it_ended(store, tmp_path):
    source = saved(EXACT["Mixtral"], tmp_path / "source")
    strategy = CarriedLora(**SETTINGS)
    train(source, tmp_path / "first", store, strategy, num_steps=2, warmup_ratio=0.0)
    model = strategy.apply(load(tmp_path / "first" / "model"), [])
    strategy.carry_on(model, tmp_path / "first" / "model")
    below, base = strategy.writes(model), dict(load(source).named_parameters())
    experts = [n for n in below if n.endswith(("gate_up_proj", "down_proj"))]
    assert len(experts) == 2 * model.config.num_hidden_layers
    for name in below:
        torch.testing.assert_close(below[name], base[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("Qwen2-MoE", {"layers.3.mlp.experts.gate_up_proj", "layers.3.mlp.experts.down_proj"}),
        ("Qwen3-MoE", {f"layers.1.mlp.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj")}),
    ],
)
def test_what_peft_leaves_out_is_said(name, left):
    with pytest.warns(UserWarning, match="has no adapter for") as told:
        model = made(name, Lora(**SETTINGS))
    assert not {f"model.{one}" for one in left} & Lora(**SETTINGS).writes(model).keys()
    text = next(str(one.message) for one in told if "has no adapter" in str(one.message))
    assert f"({len(left)} such)" in text and all(one in text for one in left)


@pytest.mark.parametrize(("name", "targets"), [("Mixtral", "all-linear"), ("Qwen2-MoE", ["q_proj"])])
def test_nothing_is_said_where_all_have_one_or_few_were_asked_for(name, targets):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made(name, Lora(**SETTINGS | {"target_modules": targets}))
    assert not [one for one in told if "has no adapter" in str(one.message)]
