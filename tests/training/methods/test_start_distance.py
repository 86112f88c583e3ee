"""EWC and L2-SP: the Fisher information and the pull by hand, and runs that keep their bits when they are cut."""

import dataclasses
from functools import partial

import pytest
import torch

from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.models import load
from pipeline.models.architecture.shape import shape_of
from pipeline.records.expansion import read_expansion
from pipeline.training.cost.flops import Trains
from pipeline.training.cost.memory import Knobs, memory_of
from pipeline.training.cost.preflight import check_before_loading
from pipeline.training.methods.ewc import Ewc
from pipeline.training.methods.kl_to_base import KlToBase
from pipeline.training.methods.l2_sp import L2Sp
from pipeline.training.methods.optim import learning_rate
from pipeline.training.methods.penalty import check_penalties
from pipeline.training.methods.start_distance import StartDistance
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from pipeline.training.runtime import StoppedError
from pipeline.training.settings import Settings
from tests.training.cost.test_memory import CONFIG
from tests.training.knobs import SETTINGS
from tests.training.methods import test_penalty
from tests.training.methods.bigram import same_rows
from tests.training.methods.test_penalty import documents, same, stream
from tests.training.processes import curve, run_on_ranks, weights
from tests.training.ranks import general_rows

TEXT = Text(LocalFiles({"kind": "local", "content": "x"}), 1.0, "text", None, None)


def ewc(weight, labels="data"):
    return Ewc(weight, TEXT, 16, 200, labels, 0)


@pytest.fixture(scope="module")
def expanded(make_model, grow):
    return grow(make_model("float32"))


train = partial(test_penalty.train, general_rows=general_rows)


def column(run, key):
    return [record[key] for record in curve(run) if key in record]


def test_the_fisher_information_of_text_by_hand():
    """Of zeros, each token's gradient is +-1/2. Documents are squared, not tokens; 5 tokens are predicted."""
    rows = same_rows([[0.0, 0.0], [0.0, 0.0]])
    texts = [[0, 1, 1], [0, 1], [0, 0, 0]]  # 0>1 1>1; 0>1; 0>0 twice
    fisher = dataclasses.replace(ewc(1.0), window=4).importance(rows.trainable, rows, lambda: texts)
    of_zero, of_one = (0.25 + 0.25 + 1.0) / 5, 0.25 / 5
    torch.testing.assert_close(fisher["table"], torch.tensor([[of_zero, of_zero], [of_one, of_one]]))
    assert rows.trainable["table"].grad is None and rows.model.training


def test_labels_drawn_from_the_model_give_its_own_fisher_information():
    """Chances 3/4 and 1/4: the variance 3/16 of either, while a text that always says 1 gives 9/16."""
    rows = same_rows([[torch.log(torch.tensor(3.0)).item(), 0.0], [0.0, 0.0]])
    texts = [[0, 1]] * 800
    drawn, data = (ewc(1.0, labels).importance(rows.trainable, rows, lambda: texts) for labels in ("model", "data"))
    assert drawn["table"][0].tolist() == pytest.approx([3 / 16, 3 / 16], abs=0.03)
    assert data["table"][0].tolist() == pytest.approx([9 / 16, 9 / 16])
    again = ewc(1.0, "model").importance(rows.trainable, rows, lambda: texts)
    assert torch.equal(drawn["table"], again["table"])


@pytest.mark.parametrize(("importance", "value", "pull"), [([3.0, 0.5], 2.5, [3.0, -1.0]), (None, 2.5, [1.0, -2.0])])
def test_the_value_and_the_pull_by_hand(importance, value, pull):
    """From (1, 2) to (2, 0): (3 + 0.5 * 4) / 2, and (1 + 4) / 2."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    distance = StartDistance(0.1, {"p": parameter}, importance and {"p": torch.tensor(importance)})
    parameter.data = torch.tensor([2.0, 0.0])
    parameter.grad = torch.tensor([10.0, 10.0])
    assert distance.add().item() == pytest.approx(value)
    assert parameter.grad.tolist() == pytest.approx([10 + 0.1 * one for one in pull])


def by_hand(source, weight, num_steps):
    """One document at a time, the distance in the loss; the trained parameters and the distance before each step."""
    model, new = load(source).train(), read_expansion(source).new_parameters
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    decays = [[p for p in trained.values() if p.ndim == dim] for dim in (2, 1)]
    groups = [{"params": p, "weight_decay": w} for p, w in zip(decays, (SETTINGS["weight_decay"], 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=SETTINGS["betas"], eps=SETTINGS["eps"])
    rows, seen = iter(stream()), []
    for step in range(num_steps):
        loss, num_labels = torch.zeros(()), 0
        for ids, labels in documents([next(rows) for _ in range(SETTINGS["batch_size"])]):
            logits = model(input_ids=ids[None]).logits[0]
            loss = loss + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            num_labels += int((labels != -100).sum())
        distance = sum((p - start[name]).square().sum() for name, p in trained.items()) / 2
        (loss / num_labels + weight * distance).backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), SETTINGS["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, SETTINGS["lr"], SETTINGS["warmup_ratio"], 0.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(distance.item())
    return {name: p.detach() for name, p in trained.items()}, seen


def test_the_parameters_are_those_of_a_loop_written_by_hand(expanded, tmp_path):
    train(expanded, tmp_path / "run", NewBlocks({"l2": L2Sp(0.5)}), launch={"micro_batch": 1})
    wanted, seen = by_hand(expanded, 0.5, 4)
    found, before, plain = weights(tmp_path / "run"), load(expanded).state_dict(), by_hand(expanded, 0.0, 4)[0]
    for name, parameter in wanted.items():
        moved = (parameter - before[name]).norm()
        assert (found[name] - parameter).norm() <= 1e-3 * moved < (plain[name] - parameter).norm() / 10, name
    assert column(tmp_path / "run", "penalty/l2") == pytest.approx(seen, rel=1e-4, abs=1e-7)


def test_a_weight_of_0_measures_and_changes_no_bit_and_validation_knows_no_penalty(expanded, tmp_path):
    train(expanded, tmp_path / "plain", NewBlocks())
    train(expanded, tmp_path / "measured", NewBlocks({"ewc": ewc(0.0)}))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "measured"))
    measured = column(tmp_path / "measured", "penalty/ewc")
    assert measured[0] == 0.0 < measured[-1]
    for key in ("loss", "val_loss"):
        assert column(tmp_path / "plain", key) == column(tmp_path / "measured", key)
    assert not (tmp_path / "measured" / "importance").exists()  # it went with the checkpoints


@pytest.mark.parametrize(
    "strategy",
    [NewBlocks, lambda p: Lora(4, 8, 0.0, "all-linear", p), lambda p: Full({**p, "kl": KlToBase(1.0, 1.0, "all")})],
    ids=["new_blocks", "lora", "full, beside kl"],
)
def test_a_run_that_is_cut_ends_with_the_same_bits(expanded, tmp_path, strategy):
    """The importance is that of the start, read again and not computed again."""
    penalised = strategy({"ewc": ewc(50.0, "model"), "l2": L2Sp(0.1)})
    train(expanded, tmp_path / "whole", penalised)
    with pytest.raises(StoppedError):
        train(expanded, tmp_path / "cut", penalised, stop_after=2)
    train(expanded, tmp_path / "cut", penalised, general_rows=None)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert column(tmp_path / "cut", "penalty/ewc")[-1] > 0 < column(tmp_path / "cut", "penalty/l2")[-1]


def test_importance_that_was_being_written_when_a_run_was_killed_is_computed_again(expanded, tmp_path):
    (tmp_path / "importance" / "ewc" / ".step-00000000.partial").mkdir(parents=True)
    train(expanded, tmp_path, NewBlocks({"ewc": ewc(1.0)}), num_steps=1)
    assert column(tmp_path, "penalty/ewc") == [0.0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["new_blocks_near_start", "full_near_start"])
def test_two_processes_end_where_one_does(expanded, tmp_path, strategy):
    """Replicated, sharded, and a run that is handed from one to the other, which keeps the importance it began with."""
    ddp, fsdp = {"world": 2}, {"world": 2, "launch": {"sharding": "fsdp2"}}
    specs = [{"world": 1, "directory": "one"}, {**ddp, "directory": "ddp"}, {**fsdp, "directory": "fsdp"}]
    specs += [{**leg, "directory": "relay"} for leg in ({**fsdp, "stop_after": 2}, {"world": 1})]
    run_on_ranks(tmp_path, expanded, [{**spec, "strategy": strategy} for spec in specs])
    before = load(expanded).state_dict()
    for name in ("ddp", "fsdp", "relay"):
        for key in ("loss", "val_loss", "grad_norm", "penalty/ewc", "penalty/l2"):
            one, other = column(tmp_path / "one", key), column(tmp_path / name, key)
            assert len(one) > 1 and one == pytest.approx(other, rel=1e-3, abs=1e-7), (name, key)
        found = weights(tmp_path / name)
        for key, parameter in weights(tmp_path / "one").items():
            assert (found[key] - parameter).norm() <= 1e-3 * (parameter - before[key]).norm(), (name, key)


def test_what_they_hold_is_counted_before_anything_is_loaded():
    shape, settings, knobs = shape_of(CONFIG), Settings(**SETTINGS), Knobs(1, "off", 64)
    trains = Trains("full")
    plain, held = (memory_of(shape, trains, settings, knobs, num_copies=copies) for copies in (0, 3))
    assert held.state - plain.state == held.starts == 3 * 4 * shape.num_parameters
    check_before_loading(plain, plain.state, settings, knobs)
    with pytest.raises(ValueError, match="this process may use"):
        check_before_loading(held, plain.state, settings, knobs)
    sharded = memory_of(shape, trains, settings, Knobs(1, "off", 64, shards=2), num_copies=3)
    assert sharded.starts == held.starts // 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2Sp(-1.0), "weight=-1.0 of l2_sp must be at least 0"),
        (lambda: ewc(float("inf")), "weight=inf of ewc"),
        (lambda: ewc(1.0, "both"), "labels='both' of ewc is not known; use model or data"),
        (lambda: dataclasses.replace(ewc(1.0), window=1), "window=1 and max_tokens=200 must be at least 2"),
        (lambda: check_penalties({"l2": L2Sp(1.0)}, "zero2"), r"sharding=zero2 cannot train with penalties \(l2\)"),
    ],
)
def test_what_cannot_be_run_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
