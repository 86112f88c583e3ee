"""What a strategy adds to the loss: KL to the base, against a loop written by hand, and a penalty from outside."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from pipeline.data.packing.mixture import PackedStream
from pipeline.models import load
from pipeline.records.expansion import read_expansion
from pipeline.training.fit import fit
from pipeline.training.kernels.base_copy import base_copy
from pipeline.training.methods.kl_to_base import KlToBase
from pipeline.training.methods.penalty import check_penalties
from pipeline.training.methods.schedule import learning_rate
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from pipeline.training.recipe import forecast_training
from pipeline.training.runtime import StoppedError
from pipeline.training.settings import Settings
from tests.stages.requests import request
from tests.training.knobs import SETTINGS, launched
from tests.training.processes import curve, run_on_ranks, weights
from tests.training.ranks import chats

LORA = (4, 8, 0.0, "all-linear")


@pytest.fixture(scope="module")
def expanded(make_model, grow):
    return grow(make_model("float32"))


def stream():
    """Rows with documents of which a part is learned, and padding."""
    return PackedStream([chats(90)], {"a": 1.0}, SETTINGS["seq_len"], 0, "truncate")


def train(source, run, strategy, stop_after=None, launch=None, general_rows=None, **changes):
    runtime, device = launched(run, stop_after, launch)
    settings = Settings(**{**SETTINGS, "num_steps": 4, **changes})
    validation = {"a": [next(PackedStream([chats(9)], {"a": 1.0}, settings.seq_len, 9, "truncate"))]}
    read = {"general_rows": general_rows}
    return fit(source, run / "model", strategy, settings, stream(), validation, runtime, device, **read)


def divergences(run):
    return [record["penalty/kl"] for record in curve(run) if "penalty/kl" in record]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def documents(rows):
    """(ids, labels) of each document of packed rows."""
    for row in rows:
        for segment in range(row["segment_ids"].max() + 1):
            here = row["segment_ids"] == segment
            yield torch.from_numpy(row["input_ids"][here]), torch.from_numpy(row["labels"][here])


def by_hand(source, penalty, num_steps):
    """One document at a time, all logits, torch's own functions; the trained parameters and each step's divergence."""
    model, base = load(source).train(), load(source).eval()
    new = read_expansion(source).new_parameters
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decays = [[p for p in trained.values() if p.ndim == dim] for dim in (2, 1)]
    groups = [{"params": p, "weight_decay": w} for p, w in zip(decays, (SETTINGS["weight_decay"], 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=SETTINGS["betas"], eps=SETTINGS["eps"])
    rows, seen = iter(stream()), []
    for step in range(num_steps):
        batch = list(documents([next(rows) for _ in range(SETTINGS["batch_size"])]))
        loss = divergence = torch.zeros(())
        num_labels = num_counted = 0
        for ids, labels in batch:
            logits = model(input_ids=ids[None]).logits[0]
            with torch.no_grad():
                base_logits = base(input_ids=ids[None]).logits[0]
            counted = {"all": labels == labels, "labels": labels != -100, "prompt": labels == -100}[penalty.tokens]
            p, q = (torch.softmax(one[counted] / penalty.temperature, -1) for one in (base_logits, logits))
            loss = loss + functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            divergence = divergence + penalty.temperature**2 * (p * (p.log() - q.log())).sum()
            num_labels, num_counted = num_labels + int((labels != -100).sum()), num_counted + int(counted.sum())
        (loss / num_labels + penalty.weight * divergence / num_counted).backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), SETTINGS["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, SETTINGS["lr"], SETTINGS["warmup_ratio"], 0.0)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(divergence.item() / num_counted)
    return {name: p.detach() for name, p in trained.items()}, seen


@pytest.mark.parametrize("tokens", ["all", "labels", "prompt"])
def test_the_parameters_are_those_of_a_loop_written_by_hand(expanded, tmp_path, tokens):
    penalty = KlToBase(5.0, 2.0, tokens)
    train(expanded, tmp_path / "run", NewBlocks({"kl": penalty}))
    wanted, seen = by_hand(expanded, penalty, 4)
    found, before = weights(tmp_path / "run"), load(expanded).state_dict()
    plain, _ = by_hand(expanded, KlToBase(0.0, 2.0, tokens), 4)
    for name, parameter in wanted.items():
        moved = (parameter - before[name]).norm()
        assert (found[name] - parameter).norm() <= 1e-4 * moved < (plain[name] - parameter).norm() / 100, name
    assert divergences(tmp_path / "run") == pytest.approx(seen, rel=1e-4, abs=1e-6)


def test_an_exact_expansion_starts_at_0_and_the_penalty_holds_it_back(expanded, tmp_path):
    for weight in (0.0, 100.0):
        train(expanded, tmp_path / str(weight), NewBlocks({"kl": KlToBase(weight, 1.0, "all")}))
    free, held = (divergences(tmp_path / name) for name in ("0.0", "100.0"))
    assert free[0] == held[0] == 0.0
    assert len(free) == 4 and 0 < held[-1] < 0.5 * free[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_weight_of_0_measures_and_changes_no_bit(expanded, tmp_path, precision):
    train(expanded, tmp_path / "plain", NewBlocks(), precision=precision)
    train(expanded, tmp_path / "measured", NewBlocks({"kl": KlToBase(0.0, 1.0, "all")}), precision=precision)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "measured"))
    measured = [{k: v for k, v in record.items() if k != "penalty/kl"} for record in curve(tmp_path / "measured")]
    assert measured == curve(tmp_path / "plain") and divergences(tmp_path / "measured")[-1] > 0


@pytest.mark.parametrize("strategy", [NewBlocks, Full, lambda p: Lora(*LORA, p)], ids=["new_blocks", "full", "lora"])
def test_a_run_that_is_cut_ends_with_the_same_bits(expanded, tmp_path, strategy):
    """The base is the model of the start, also after a resume."""
    penalised = strategy({"kl": KlToBase(1.0, 1.0, "all")})
    train(expanded, tmp_path / "whole", penalised)
    with pytest.raises(StoppedError):
        train(expanded, tmp_path / "cut", penalised, stop_after=2)
    train(expanded, tmp_path / "cut", penalised)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut") and divergences(tmp_path / "cut")[-1] > 0


@pytest.mark.parametrize("launch", [{"micro_batch": 1}, {"micro_batch": 4}, {"loss_chunk": 7}], ids=lambda x: str(*x))
def test_micro_batches_and_chunks_only_change_the_order_of_sums(expanded, tmp_path, launch):
    penalised = NewBlocks({"kl": KlToBase(5.0, 2.0, "all")})
    train(expanded, tmp_path / "one", penalised)
    train(expanded, tmp_path / "other", penalised, launch=launch)
    for key in ("loss", "penalty/kl", "grad_norm"):
        one, other = ([r[key] for r in curve(tmp_path / name) if key in r] for name in ("one", "other"))
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_a_base_held_in_fewer_bits_is_shared(expanded, tmp_path, form):
    if form == "int8":
        pytest.importorskip("bitsandbytes")
    train(expanded, tmp_path, NewBlocks({"kl": KlToBase(1.0, 1.0, "all")}), frozen_dtype=form)
    assert divergences(tmp_path)[0] == 0.0 and divergences(tmp_path)[-1] > 0


def test_a_model_whose_head_is_not_plain(make_model, grow, tmp_path):
    """Its own logits are compared, all at once: with an adapted head, states alone do not give them."""
    source = make_model("float32", tie_word_embeddings=False)
    adapted = Lora(4, 8, 0.0, ["q_proj", "lm_head"], {"kl": KlToBase(1.0, 2.0, "all")})
    with pytest.warns(UserWarning, match="loss_chunk=64 is ignored"):
        train(source, tmp_path, adapted)
    assert divergences(tmp_path)[0] == 0.0 and divergences(tmp_path)[-1] > 0


def test_a_base_shares_what_is_frozen(expanded):
    model = NewBlocks().apply(load(expanded), read_expansion(expanded).module_parameters)
    base = base_copy(model, torch.device("cpu"))
    pairs = dict(base.named_parameters())
    assert all((p is pairs[name]) == (not p.requires_grad) for name, p in model.named_parameters())
    assert not any(p.requires_grad for p in pairs.values()) and any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["new_blocks_near_base", "full_near_base"])
def test_the_curve_over_two_processes_is_that_of_one(expanded, tmp_path, strategy):
    """One process has a row less than the other: what stands in for it counts nothing."""
    kinds = {"one": {"world": 1}, "ddp": {"world": 2}, "fsdp": {"world": 2, "launch": {"sharding": "fsdp2"}}}
    specs = [{**kind, "directory": name, "strategy": strategy} for name, kind in kinds.items()]
    relay = [{**kinds["one"], "stop_after": 2}, {**kinds["fsdp"], "stop_after": 2}, kinds["ddp"]]
    specs += [{**leg, "directory": "relay", "strategy": strategy} for leg in relay]
    ends, before = run_on_ranks(tmp_path, expanded, specs), load_file(expanded / "model.safetensors")
    assert ends[3:] == [[3], [3, 3], [0, 0]]
    for name in ("ddp", "fsdp", "relay"):
        for key in ("loss", "val_loss", "grad_norm", "penalty/kl"):
            one, other = ([r[key] for r in curve(tmp_path / run) if key in r] for run in ("one", name))
            assert len(one) > 1 and one == pytest.approx(other, rel=1e-4, abs=1e-7), (name, key)
        found = weights(tmp_path / name)
        for key, parameter in weights(tmp_path / "one").items():
            assert (found[key] - parameter).norm() <= 1e-4 * (parameter - before[key]).norm(), (name, key)


OUTSIDE = '''
"""Train the norms alone, the final one at a tenth of the rate, and keep them near their start (L2-SP, 1802.01483)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class NearStart:
    weight: float
    needs_base: ClassVar[bool] = True

    def count(self, labels, padding):
        return int(not padding.all())

    def total(self, batch):
        starts = dict(batch.base.named_parameters())
        moved = sum((p - starts[n]).square().sum() for n, p in batch.model.named_parameters() if p.requires_grad)
        return moved * (~batch.padding).view(-1, 64).any(1).sum()

    def adds(self, cost):
        return cost


@dataclass(frozen=True)
class Norms:
    penalties: Mapping[str, Any]
    needs_new_parameters: ClassVar[bool] = False

    def footprint(self):
        return None

    def apply(self, model, new_parameters):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    def lr_scales(self, expansion):
        return {"model.norm.weight": 0.1}

    def writes(self, model):
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    trained = writes
'''


def test_a_strategy_from_outside_brings_its_own_penalty_and_rates(make_model, tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    from hydra.utils import instantiate

    source, before = make_model("float32"), load(make_model("float32")).state_dict()
    moved = {}
    for weight in (0.0, 30.0):
        penalty = {"_target_": "elsewhere.NearStart", "weight": weight}
        section = {"_target_": "elsewhere.Norms", "penalties": {"kl": penalty}}
        run = tmp_path / str(weight)
        train(source, run, instantiate(section, _convert_="all"), weight_decay=0.0, max_grad_norm=1e3)
        after = weights(run)
        moved[weight] = {n: (after[n] - before[n]).norm().item() for n in after if not torch.equal(after[n], before[n])}
        assert moved[weight] and all("norm" in name for name in moved[weight])
        total = sum(one**2 for one in moved[weight].values())
        assert divergences(run)[0] == 0.0 < divergences(run)[-1] < 2 * total
    monkeypatch.delitem(sys.modules, "elsewhere")
    assert sum(moved[30.0].values()) < 0.5 * sum(moved[0.0].values())
    assert moved[0.0]["model.norm.weight"] < 0.3 * moved[0.0]["model.layers.3.input_layernorm.weight"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1.0, 1.0, "all"), "weight=-1.0 of kl_to_base must be at least 0"),
        ((float("nan"), 1.0, "all"), "weight=nan"),
        ((1.0, 0.0, "all"), "temperature=0.0 of kl_to_base must be more than 0"),
        ((1.0, 1.0, "answers"), "tokens='answers' of kl_to_base is not known; use all, labels or prompt"),
    ],
)
def test_values_that_cannot_be_run(values, message):
    with pytest.raises(ValueError, match=message):
        KlToBase(*values)


def test_what_is_no_penalty_or_cannot_be_launched_is_refused_before_anything_runs():
    penalties = {"kl": KlToBase(1.0, 1.0, "all")}
    check_penalties(penalties, "fsdp2")
    with pytest.raises(ValueError, match=r"strategy\.penalties\.kl=None is not a penalty.*~STAGE"):
        check_penalties({"kl": None}, "none")
    with pytest.raises(ValueError, match=r"sharding=zero3 cannot train with penalties \(kl\); use none or fsdp2"):
        forecast_training("pretrain", request({}, launch={"sharding": "zero3"}), NewBlocks(penalties), ())


def test_a_model_that_mixes_documents_is_refused(make_model, tmp_path):
    source = make_model("float32", model_type="bloom", n_layer=2, n_head=4)
    with pytest.raises(ValueError, match=r"which penalties cannot follow; remove strategy\.penalties \(kl\)"):
        train(source, tmp_path, Full({"kl": KlToBase(1.0, 1.0, "all")}))
