"""A length in training FLOPs: the steps that it allows, for models of any kind, and what runs tell of their cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.data.corpus import Workspace
from pipeline.data.packing.examples import ExampleStream
from pipeline.data.packing.mixture import PackedStream
from pipeline.expansion.methods.scale import Scale
from pipeline.expansion.methods.soft_moe import SoftMoe
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.architecture.shape import shape_of
from pipeline.records.expansion import read_expansion
from pipeline.training.cost.budget import in_steps, tokens_within
from pipeline.training.cost.count import FORMULAS, cost_of_saved, count_cost, num_active
from pipeline.training.cost.flops import Trains, cost_of
from pipeline.training.methods.kl_to_base import KlToBase
from pipeline.training.methods.penalty import with_penalties
from pipeline.training.methods.strategy import Full, Lora, NewBlocks, apply_strategy
from pipeline.training.recipe import training_params
from pipeline.training.runtime import StoppedError
from tests.composed import SMALLER, compose
from tests.expansion.upcycling.conftest import method_of
from tests.training.cost.test_flops import LLAMA, NEW
from tests.training.test_fit import expanded, settings, store, train  # noqa: F401
from tests.visual import give_sight

SHAPE = shape_of(LLAMA).with_new(set(NEW))
COST = cost_of(SHAPE, Trains("new_blocks"))
STEP = COST.of_rows(64) * 4
WAYS = [NewBlocks(), Full()]
OWN = ("soft_moe", "preserve", "adapt", "mixtral", "deepseek_moe", "calm", "visual_experts")


def budget(num_flops, **changes):
    return settings(num_steps=None, num_flops=num_flops, **changes)


@pytest.mark.parametrize(("num_flops", "steps"), [(STEP, 1), (2 * STEP - 1, 1), (2 * STEP, 2), (1000 * STEP, 1000)])
def test_as_many_whole_steps_as_the_budget_allows(num_flops, steps):
    assert in_steps(budget(num_flops), COST, None) == settings(num_steps=steps)


def test_methods_get_tokens_in_proportion_to_what_a_token_costs_them():
    full = cost_of(SHAPE, Trains("full"))
    ratio = tokens_within(1e15, COST, 64) / tokens_within(1e15, full, 64)
    assert ratio == pytest.approx(full.of_rows(64) / COST.of_rows(64), rel=1e-6) and ratio > 1.3
    near = with_penalties(COST, {"kl": KlToBase(1.0, 1.0, "all")})
    assert tokens_within(1e15, near, 64) < tokens_within(1e15, COST, 64)


@pytest.mark.parametrize("changes", [{}, {"batch_size": 7}, {"seq_len": 32}])
def test_too_small_a_budget_is_refused_with_one_that_is_enough(changes):
    with pytest.raises(ValueError, match="too few for one step") as caught:
        in_steps(budget(1e6, **changes), COST, None)
    enough = float(str(caught.value).partition("use at least ")[2].partition(",")[0])
    assert in_steps(budget(enough * 1.0001, **changes), COST, None).num_steps == 1


@pytest.mark.parametrize("kind", [PackedStream, ExampleStream])
def test_padding_costs_nothing(store, kind):  # noqa: F811
    """One step more would hold more tokens than the budget allows."""
    stream = kind([store], {"a": 1.0}, 64, 0)
    num_steps, tokens = in_steps(budget(9.5 * STEP), COST, stream).num_steps, tokens_within(9.5 * STEP, COST, 64)
    fresh = kind([store], {"a": 1.0}, 64, 0)
    for _ in range(num_steps):
        fresh.plan_batch(4)
    assert sum(fresh.tokens.values()) <= tokens
    fresh.plan_batch(4)
    assert sum(fresh.tokens.values()) > tokens and num_steps >= 9


def test_params_say_the_budget_only_where_there_is_one():
    section = {"num_steps": 5, "num_tokens": None, "num_epochs": None, "track": {"every": None}}
    assert training_params({**section, "num_flops": None}) == training_params(section)
    assert training_params({**section, "num_flops": 1e15})["num_flops"] == 10**15
    blocks = {**section, "strategy": {"num_blocks": 0, "extra_modules": [], "blocks": None}}
    assert training_params(blocks)["strategy"] == {"num_blocks": 0, "blocks": None}


def written(method, source, target):
    found = read_source(source)
    place = Workspace(None, None, target.parent / "scratch", lambda **_: None)
    write_expansion(method.plan(found, place), found, target)
    return target


@pytest.fixture(scope="module")
def models(make_model, tmp_path_factory):
    """Models of our own, and upcycled ones, as their expansions make them."""
    folder, base = tmp_path_factory.mktemp("models"), make_model("float32")
    wider = {"new_features": 8, "new_key_value_heads": 1, "new_inner_features": 16, "init": "random", "seed": 0}
    methods = {
        "soft_moe": SoftMoe("exact"), "preserve": Scale("preserve", **wider), "adapt": Scale("adapt", **wider),
        "mixtral": method_of("mixtral"), "deepseek_moe": method_of("deepseek_moe"),
    }  # fmt: skip
    found = {name: written(method, base, folder / name) for name, method in methods.items()}
    other = make_model("float32", seed=1, model_type="qwen3", **SMALLER)
    seeing = give_sight(base, folder / "visual_experts")
    return {**found, "calm": compose(base, other, folder / "calm"), "visual_experts": seeing}


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, way) for name in OWN for way in WAYS),
        ("soft_moe", Lora(2, 4, 0.0, "all-linear")),
        ("mixtral", Lora(2, 4, 0.0, "all-linear")),
        ("deepseek_moe", Lora(2, 4, 0.0, ["q_proj", "gate_proj", "up_proj", "down_proj"])),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_budget_knows_what_models_of_our_own_execute(models, name, strategy):
    """Counted before weights are read, against a forward and a backward pass on numbers, head and plain attention."""
    cost, length = cost_of_saved(models[name], strategy), 48
    causal = load(models[name], attention="eager")
    expansion = read_expansion(models[name])
    model = apply_strategy(strategy, causal, expansion)
    as_a_run_tells_it = count_cost(causal)
    assert as_a_run_tells_it.of_rows(length) == pytest.approx(cost.of_rows(length), rel=1e-3) and not causal.training
    model.train()
    ids = torch.randint(3, 60, (1, length))
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    found = counter.get_total_flops()
    if name == "deepseek_moe" and type(strategy) is Full:  # known from the shape, which knows of nothing fixed
        gates = [one for one in expansion.fixed_parameters if one.endswith("shared_expert_gate.weight")]
        found += len(gates) * 2 * 32 * length
    assert cost.needed(length, length, lambda _: length**2) == pytest.approx(found, rel=1e-9)


def test_what_a_token_does_not_meet_is_not_active(models):
    for name in ("soft_moe", "preserve", "adapt", "calm"):
        model = load(models[name])
        assert num_active(model) == sum(p.numel() for p in model.parameters())
    for name, (num_sparse, unit) in {"mixtral": (4, 64), "deepseek_moe": (3, 16)}.items():
        model, method = load(models[name]), method_of(name)
        idle = num_sparse * (method.num_experts - method.top_k) * 3 * 32 * unit
        assert num_active(model) == sum(p.numel() for p in model.parameters()) - idle


def test_a_run_tells_what_it_took_whether_it_was_stopped_or_not(expanded, store, tmp_path):  # noqa: F811
    whole = train(expanded, tmp_path / "whole", store)
    with pytest.raises(StoppedError):
        train(expanded, tmp_path / "cut", store, stop_after=3)
    cut = train(expanded, tmp_path / "cut", store)
    assert whole["training_flops"] == cut["training_flops"]
    assert abs(whole["training_flops"] / whole["num_tokens"] - whole["flops_per_token"]) <= 0.5
    assert 0 < whole["num_trainable"] < whole["num_parameters"] == whole["num_active"]
    assert {"tokens_per_s", "peak_memory_bytes"} <= whole.keys()
