"""ADEPT's rates: importance and scales by hand, the optimizer's groups, and runs that keep their bits."""

import json
import math

import pytest
import torch

from pipeline.models import load
from pipeline.records.expansion import ExpansionMap, NewBlock, read_expansion
from pipeline.training.methods.adept import Adept, UnitRates, scales_of
from pipeline.training.methods.optim import build_adamw, set_learning_rate, set_lr_scales
from pipeline.training.methods.strategy import NewBlocks
from pipeline.training.recipe import check_general_text
from pipeline.training.runtime import StoppedError
from tests.training.methods.bigram import same_rows
from tests.training.methods.test_penalty import same
from tests.training.methods.test_start_distance import column, train
from tests.training.processes import curve, run_on_ranks, weights
from tests.training.ranks import STRATEGIES, TEXT


@pytest.fixture(scope="module")
def expanded(make_model, grow):
    return grow(make_model("float32"))


def adept(every=2, batch_size=2):
    return Adept(general=TEXT, window=16, max_tokens=200, batch_size=batch_size, every=every)


def rates(run):
    return [json.loads(line) for line in (run / "rates.jsonl").read_text().splitlines()]


def test_the_most_important_unit_stands_still_and_the_least_learns_twice_as_fast():
    assert scales_of({"a": 0.0, "b": 1.0, "c": 4.0}) == {"a": 2.0, "b": 1.5, "c": 0.0}
    assert scales_of({"a": 3.0, "b": 3.0}) == {"a": 1.0, "b": 1.0}


def test_the_importance_by_hand():
    """Chances of (log 3, 0) are 3/4 and 1/4. Batches [0>1, 0>1] and [0>0]: mean gradients of row 0 are +-3/4 and +-1/4,
    whose absolute values' mean is 1/2 for either number; times |theta|, over the table's four numbers."""
    log3 = math.log(3.0)
    rows = same_rows([[log3, 0.0], [-7.0, 5.0]])
    optimizer = build_adamw([("table", rows.trainable["table"])], 1.0, (0.9, 0.95), 1e-8, 0.1)
    found = UnitRates(adept(), rows.trainable, rows, optimizer, [[0, 1], [0, 1], [0, 0]]).measure()
    assert found["importance"]["table"] == pytest.approx(0.5 * log3 / 4, rel=1e-6)
    assert found["lr_scales"] == {"table": 1.0}
    assert rows.trainable["table"].grad is None


def test_other_scales_keep_state_decay_and_what_is_not_named(make_model):
    model = load(make_model())
    named = dict(model.named_parameters())
    optimizer = build_adamw(named.items(), 1e-3, (0.9, 0.95), 1e-8, 0.1)
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {id(p): optimizer.state[p]["exp_avg"] for p in named.values()}
    chosen = {"model.layers.1.mlp.up_proj.weight": 0.5, "model.layers.1.input_layernorm.weight": 0.0}
    for _ in range(2):  # the second time from the groups of the first
        set_lr_scales(optimizer, {named[name]: scale for name, scale in chosen.items()})
    set_learning_rate(optimizer, 2e-3)
    names = {id(p): name for name, p in named.items()}
    seen = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(named)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == 2e-3 * chosen.get(names[id(parameter)], 1.0)
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)
            assert optimizer.state[parameter]["exp_avg"] is state[id(parameter)]


def test_rates_are_the_stages_until_the_first_measurement_and_then_those_of_the_record(expanded, tmp_path):
    train(expanded, tmp_path / "plain", NewBlocks())
    train(expanded, tmp_path / "adept", adept(every=2))
    assert column(tmp_path / "adept", "loss")[:3] == column(tmp_path / "plain", "loss")[:3]
    assert column(tmp_path / "adept", "loss")[3] != column(tmp_path / "plain", "loss")[3]
    (record,) = rates(tmp_path / "adept")
    units = set(read_expansion(expanded).module_parameters)
    assert record["step"] == 2 and set(record["importance"]) == set(record["lr_scales"]) == units
    assert record["lr_scales"] == scales_of(record["importance"])
    assert min(record["importance"].values()) >= 0 < max(record["importance"].values())


def test_a_run_that_is_cut_ends_with_the_same_bits(expanded, tmp_path):
    """Cut where rates are about to be set anew, and where they were: a checkpoint keeps them."""
    train(expanded, tmp_path / "whole", adept(every=2), num_steps=6)
    for number, cut in enumerate((3, 4)):
        run = tmp_path / str(number)
        with pytest.raises(StoppedError):
            train(expanded, run, adept(every=2), stop_after=cut, num_steps=6)
        train(expanded, run, adept(every=2), num_steps=6)
        assert same(weights(tmp_path / "whole"), weights(run)) and rates(tmp_path / "whole") == rates(run)
        assert curve(tmp_path / "whole") == curve(run)
    assert [one["step"] for one in rates(tmp_path / "whole")] == [2, 4]


def test_a_run_too_short_for_any_measurement_says_so(expanded, tmp_path):
    with pytest.warns(UserWarning, match="every 500 steps and this run has 4: all new blocks train at one rate"):
        train(expanded, tmp_path / "run", adept(every=500))


@pytest.mark.slow
def test_two_processes_set_the_rates_of_one(expanded, tmp_path):
    ddp, fsdp = {"world": 2}, {"world": 2, "launch": {"sharding": "fsdp2"}}
    specs = [{"world": 1, "directory": "one"}, {**ddp, "directory": "ddp"}, {**fsdp, "directory": "fsdp"}]
    specs += [{**leg, "directory": "relay"} for leg in ({**fsdp, "stop_after": 4}, {"world": 1})]
    run_on_ranks(tmp_path, expanded, [{**spec, "strategy": "adept"} for spec in specs])
    for name in ("ddp", "fsdp", "relay"):
        for one, other in zip(rates(tmp_path / "one"), rates(tmp_path / name), strict=True):
            for key in ("importance", "lr_scales"):
                assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6), name
        assert column(tmp_path / "one", "loss") == pytest.approx(column(tmp_path / name, "loss"), rel=1e-4)


def test_what_cannot_be_run_is_refused():
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        adept(every=0).check(6, True)
    recorded = ExpansionMap(
        blocks=(NewBlock(1, 0, lr_scale=0.5),), new_parameters=("model.layers.1.mlp.up_proj.weight",)
    )
    with pytest.raises(ValueError, match=r"expand\.block_rates=true\), and strategy adept"):
        adept().lr_scales(recorded)
    with pytest.raises(ValueError, match="window=16 of strategy is more than seq_len=8"):
        check_general_text(adept(), 8, "none")
    with pytest.raises(ValueError, match="window=16 of ewc is more than seq_len=8"):
        check_general_text(STRATEGIES["new_blocks_near_start"](), 8, "none")
    with pytest.raises(ValueError, match="sharding=zero3 cannot train with learning rates that change"):
        check_general_text(adept(), 64, "zero3")
