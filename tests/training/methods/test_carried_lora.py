"""One adapter from task to task: what it was is what goes on, above the weights that the first task began with."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models import load
from pipeline.models.save import save_trained
from pipeline.records.expansion import ExpansionMap
from pipeline.training.methods.carried_lora import ADAPTER_FILE, CarriedLora
from pipeline.training.methods.strategy import Lora, apply_strategy

SETTINGS = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
IDS = torch.arange(20)[None]


def adapted(strategy, source):
    return apply_strategy(strategy, load(source), ExpansionMap(), source)


def trained_task(source: Path, target: Path, strategy, seed: int) -> dict[str, torch.Tensor]:
    """As a training stage does it: adapt, change the adapter, hand it on, merge and save; returns the adapter."""
    model = adapted(strategy, source)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    kept = strategy.carried(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, target.parent / ADAPTER_FILE)
    save_trained(source, target, strategy.trained(model))
    return kept


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def chain(make_model, tmp_path):
    """A base, and the model of a first task with its adapter."""
    base, first = make_model(), tmp_path / "first" / "model"
    return base, first, trained_task(base, first, CarriedLora(**SETTINGS), 1)


def test_the_adapter_goes_on_where_it_ended(chain):
    base, first, kept = chain
    model = adapted(CarriedLora(**SETTINGS), first)
    assert {name: t.tolist() for name, t in CarriedLora(**SETTINGS).carried(model).items()} == {
        name: t.tolist() for name, t in kept.items()
    }
    torch.testing.assert_close(logits(model), logits(load(first)), rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(load(base)), rtol=1e-4, atol=1e-5)
    below = dict(model.named_parameters())
    for name, weight in load(base).named_parameters():
        found = below.get(f"base_model.model.{name}")
        found = below[f"base_model.model.{name.removesuffix('.weight')}.base_layer.weight"] if found is None else found
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-6)


def test_two_tasks_are_one_adapter_of_the_base_and_not_two_on_top_of_each_other(chain, tmp_path):
    base, first, _ = chain
    last = trained_task(first, tmp_path / "second" / "model", CarriedLora(**SETTINGS), 2)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    weight = "model.layers.0.self_attn.q_proj.weight"
    change = load(tmp_path / "second" / "model").get_parameter(weight) - load(base).get_parameter(weight)
    torch.testing.assert_close(change, 2.0 * last[f"{name}.B"] @ last[f"{name}.A"], rtol=0, atol=1e-5)
    assert torch.linalg.matrix_rank(change, atol=1e-4) == 4
    fresh = adapted(Lora(**SETTINGS), first)
    assert all(not parameter.any() for name, parameter in fresh.named_parameters() if "lora_B" in name)


def test_a_model_without_an_adapter_begins_with_a_new_one(make_model):
    model = adapted(CarriedLora(**SETTINGS), make_model())
    assert all(not parameter.any() for name, parameter in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("changes", [{"rank": 2}, {"alpha": 4.0}, {"target_modules": ["q_proj"]}])
def test_an_adapter_of_other_settings_is_refused(chain, changes):
    with pytest.raises(ValueError, match=r"cannot be carried on: .* of rank \[4\] and alpha / rank \[2\.0\]"):
        adapted(CarriedLora(**{**SETTINGS, **changes}), chain[1])


def test_what_lies_beside_the_model_is_the_adapter_alone(chain):
    _, first, kept = chain
    assert not (first / ADAPTER_FILE).exists()
    assert set(load_file(first.parent / ADAPTER_FILE)) == set(kept)
