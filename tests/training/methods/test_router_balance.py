"""The balance of routers in training, what it changes, what is told of the load, and experts in bf16."""

import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from pipeline.models import load
from pipeline.records.expansion import read_expansion
from pipeline.training.kernels.blocks import prepare_blocks
from pipeline.training.kernels.experts import cast_experts
from pipeline.training.kernels.head import PLAIN
from pipeline.training.kernels.routers import Routers, imbalance, routers_of
from pipeline.training.methods.kl_to_base import KlToBase
from pipeline.training.methods.optim import build_adamw
from pipeline.training.methods.router_balance import NAME, RouterBalance, with_router_balance
from pipeline.training.methods.strategy import Full, Lora, NewBlocks, apply_strategy
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.runtime import StoppedError
from pipeline.training.settings import Settings
from tests.expansion.upcycling.conftest import method_of
from tests.training.knobs import SETTINGS
from tests.training.methods.test_penalty import same, train
from tests.training.processes import curve, run_on_ranks, weights

BALANCE = f"penalty/{NAME}"


@pytest.fixture(scope="module")
def sparse(make_model, tmp_path_factory):
    """A function that upcycles a tiny model, once for each option."""
    from pipeline.expansion.source import read_source
    from pipeline.expansion.writer import write_expansion

    made = {}

    def upcycled(option="mixtral", **changes):
        key = repr((option, changes))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("sparse")
            source = read_source(make_model("float32", initializer_range=0.1))
            write_expansion(method_of(option, **changes).plan(source), source, made[key])
        return made[key]

    return upcycled


def by_hand(logits_BTE, padding_BT, top_k):
    """Row by row, token by token."""
    total, num_experts = 0.0, logits_BTE.shape[-1]
    for row, padding in zip(logits_BTE, padding_BT, strict=True):
        tokens = [token for token, padded in zip(row, padding, strict=True) if not padded]
        for expert in range(num_experts):
            f = sum(expert in token.topk(top_k).indices for token in tokens) / max(1, len(tokens))
            p = sum(token.softmax(-1)[expert] for token in tokens) / max(1, len(tokens))
            total = total + num_experts / top_k * f * p * len(tokens)
    return total


def test_the_term_is_that_of_its_definition():
    torch.manual_seed(0)
    logits, padding = torch.randn(3, 9, 6), torch.zeros(3, 9, dtype=torch.bool)
    padding[0, 5:], padding[2] = True, True  # one row is padding alone
    found = imbalance(logits.flatten(0, 1), padding, Routers(("a",), 2))
    torch.testing.assert_close(found, by_hand(logits, padding, 2))
    one = imbalance(logits[1], padding[1:2], Routers(("a",), 2)) / 9
    torch.testing.assert_close(one * 2, load_balancing_loss_func((logits[1],), 6, 2))  # transformers has no 1/k


def test_an_even_load_has_1_and_a_single_choice_the_number_of_experts_over_k():
    padding, routers = torch.zeros(1, 8, dtype=torch.bool), Routers(("a",), 1)
    even, single = 50 * torch.eye(4).repeat(2, 1), 50 * torch.eye(4)[:1].repeat(8, 1)
    assert imbalance(even, padding, routers).item() / 8 == pytest.approx(1)
    assert imbalance(single, padding, routers).item() / 8 == pytest.approx(4)


def gradients(source, checkpointing="off"):
    model = Full().apply(load(source), []).train()
    prepare_blocks(model, checkpointing, False)
    torch.manual_seed(0)
    ids, places = torch.randint(0, 300, (4, 32)), torch.arange(16).repeat(2).expand(4, 32)
    penalties = with_router_balance({}, 0.5, model, routers_of(model))
    terms = PackedLoss(model, PLAIN, penalties=penalties)(ids, ids, places)
    (terms[0] + 0.5 * terms[1]).backward()
    return terms.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("option", ["mixtral", "deepseek_moe"])
def test_recomputed_blocks_give_the_same_gradients_to_the_bit(sparse, option):
    terms, wanted = gradients(sparse(option))
    for checkpointing in ("selective", "full"):
        again, found = gradients(sparse(option), checkpointing)
        assert torch.equal(again, terms) and same(found, wanted)
    assert any(wanted[name].any() for name in wanted if name.endswith("mlp.gate.weight"))


@pytest.mark.parametrize("launch", [{"micro_batch": 1}, {"micro_batch": 4}, {"loss_chunk": 7}], ids=lambda x: str(*x))
def test_micro_batches_only_change_the_order_of_sums(sparse, tmp_path, launch):
    for name, knobs in (("one", None), ("other", launch)):
        train(sparse(), tmp_path / name, Full(), launch=knobs, router_balance=1.0)
    for key in ("loss", BALANCE, "grad_norm"):
        one, other = ([r[key] for r in curve(tmp_path / name) if key in r] for name in ("one", "other"))
        assert len(one) == 4 and one == pytest.approx(other, rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_0_measures_null_leaves_out_and_neither_changes_a_bit(sparse, tmp_path, precision):
    for weight in (0.0, None, 0.5):
        train(sparse(), tmp_path / str(weight), Full(), precision=precision, router_balance=weight)
    measured, none, trained = (tmp_path / name for name in ("0.0", "None", "0.5"))
    assert same(weights(measured), weights(none)) and not same(weights(trained), weights(none))
    assert [{k: v for k, v in record.items() if k != BALANCE} for record in curve(measured)] == curve(none)
    # The loss that is told is without it.
    assert curve(trained)[1]["loss"] == curve(none)[1]["loss"] and curve(trained)[1][BALANCE] > 1


def test_it_stands_beside_the_penalties_of_a_strategy(sparse, tmp_path):
    train(sparse(), tmp_path, NewBlocks({"kl": KlToBase(1.0, 1.0, "all")}))
    steps = [record for record in curve(tmp_path) if "loss" in record]
    assert all({"penalty/kl", BALANCE} <= record.keys() for record in steps) and steps[-1]["penalty/kl"] > 0


def test_only_routers_that_train_are_balanced(sparse, make_model, tmp_path):
    model = load(sparse())
    routers = routers_of(model)
    assert routers == Routers(tuple(f"model.layers.{i}.mlp.gate" for i in range(4)), 2)
    model.requires_grad_(False)
    model.model.layers[2].mlp.gate.requires_grad_(True)
    assert with_router_balance({}, 0.1, model, routers) == {NAME: RouterBalance(0.1, routers, (2,))}
    model.requires_grad_(False)
    assert with_router_balance({}, 0.1, model, routers) == {} == with_router_balance({}, None, model, routers)
    assert routers_of(load(make_model())) is None
    train(sparse(), tmp_path / "lora", Lora(4, 8, 0.0, ["q_proj"]))
    assert not any(BALANCE in record for record in curve(tmp_path / "lora"))
    assert any("router/dropped" in record for record in curve(tmp_path / "lora"))


def test_a_router_that_a_bias_keeps_even_is_left_alone(make_model):
    config = {"model_type": "deepseek_v3", "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
              "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
              "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}  # fmt: skip
    assert routers_of(load(make_model(**config))) is None


def skewed(source, target):
    """The same model with routers that send every token to much the same experts."""
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    for name in tensors:
        if name.endswith("block_sparse_moe.gate.weight"):
            tensors[name] = 0.5 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(1))
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_experts_are_used_with_the_balance_and_fewer_without(sparse, tmp_path):
    """Entropy of the load per block, on held-out rows; 1 is even."""
    source = skewed(sparse(), tmp_path / "source")
    found = {}
    for weight in (None, 1.0):
        metrics = train(source, tmp_path / str(weight), Full(), num_steps=30, router_balance=weight)
        last = [record for record in curve(tmp_path / str(weight)) if "router/dropped" in record][-1]
        found[weight] = [last[f"router/entropy/{block}"] for block in range(4)], metrics
        loads = [last[f"router/load/{block}"] for block in range(4)]
        assert all(sum(load) == pytest.approx(1, abs=1e-4) and len(load) == 8 for load in loads)
        assert last["router/dropped"] == metrics["router_dropped"] == 0
    (without, plain), (balanced, metrics) = found[None], found[1.0]
    assert all(more > less for more, less in zip(balanced, without, strict=True))
    assert metrics["router_unused_experts"] == 0 < plain["router_unused_experts"]
    assert metrics["router_entropy_min"] > 0.9 > plain["router_entropy_min"]


class _Dtypes(TorchDispatchMode):
    """Of the grouped products inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._grouped_mm.default:
            self.seen |= {args[0].dtype, args[1].dtype}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("option", ["mixtral", "deepseek_moe"])
def test_experts_multiply_in_the_dtype_of_autocast(sparse, option):
    model = Full().apply(load(sparse(option)), [])
    ids = torch.randint(0, 300, (2, 16))
    plain = model(ids).logits
    cast_experts(model)
    assert torch.equal(model(ids).logits, plain)  # outside of autocast nothing changes
    with _Dtypes() as dtypes:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids).loss
        loss.backward()
    assert dtypes.seen == {torch.bfloat16}
    gradient = model.model.layers[1].mlp.experts.down_proj.grad
    assert gradient.dtype == torch.float32 and gradient.any()


def test_an_expert_that_no_token_reaches_decays_like_any_parameter(sparse):
    """AdamW's decay is of a parameter and not of its use: decided so, and what keeps experts reached is the balance."""
    model = Full().apply(load(sparse()), [])
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.zero_()  # ties: the first two are chosen for every token
        chosen = model.model.layers[0].mlp.gate(torch.randn(5, 32))[2].unique().tolist()
    optimizer = build_adamw(model.named_parameters(), 0.01, (0.9, 0.95), 1e-8, 0.1)
    before = experts.down_proj.detach().clone()
    ids = torch.randint(0, 300, (2, 16))
    model(ids, labels=ids).loss.backward()
    idle = [expert for expert in range(8) if expert not in chosen]
    assert len(idle) == 6 and not experts.down_proj.grad[idle].any()
    optimizer.step()
    torch.testing.assert_close(experts.down_proj[idle], before[idle] * (1 - 0.01 * 0.1))


@pytest.mark.parametrize(("option", "strategy"), [("mixtral", Full), ("deepseek_moe", NewBlocks)])
def test_a_run_that_is_cut_ends_with_the_same_bits(sparse, tmp_path, option, strategy):
    train(sparse(option), tmp_path / "whole", strategy())
    with pytest.raises(StoppedError):
        train(sparse(option), tmp_path / "cut", strategy(), stop_after=2)
    train(sparse(option), tmp_path / "cut", strategy())
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


def test_what_never_trains_stays_with_full(sparse, tmp_path):
    source = sparse("deepseek_moe")
    metrics = train(source, tmp_path, Full())
    after, fixed = dict(load(tmp_path / "model").named_parameters()), read_expansion(source).fixed_parameters
    assert fixed and not any(after[name].any() for name in fixed)
    model = apply_strategy(Full(), load(source), read_expansion(source))
    assert metrics["num_trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_weight_that_cannot_be_used():
    with pytest.raises(ValueError, match=r"router_balance=-1\.0 must be at least 0 and finite, or null for none"):
        Settings(**{**SETTINGS, "router_balance": -1.0})


def test_a_launch_without_penalties_says_that_it_leaves_it_out(sparse):
    model = load(sparse())
    with pytest.warns(UserWarning, match=r"router_balance=0.01 is ignored: launch.sharding=zero3"):
        assert with_router_balance({}, 0.01, model, routers_of(model), "zero3") == {}
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_router_balance({}, 0.01, model, routers_of(model), "zero3") == {}


@pytest.mark.slow
@pytest.mark.parametrize(("option", "strategy"), [("mixtral", "full"), ("deepseek_moe", "new_blocks")])
def test_the_curve_over_two_processes_is_that_of_one(sparse, tmp_path, option, strategy):
    """One process has a row less than the other: what stands in for it counts nothing."""
    source = sparse(option)
    kinds = {"one": {"world": 1}, "ddp": {"world": 2}, "fsdp": {"world": 2, "launch": {"sharding": "fsdp2"}}}
    specs = [{**kind, "directory": name, "strategy": strategy} for name, kind in kinds.items()]
    relay = [{**kinds["one"], "stop_after": 2}, {**kinds["fsdp"], "stop_after": 2}, kinds["ddp"]]
    specs += [{**leg, "directory": "relay", "strategy": strategy} for leg in relay]
    ends, before = run_on_ranks(tmp_path, source, specs), load_file(source / "model.safetensors")
    assert ends[3:] == [[3], [3, 3], [0, 0]]
    for name in ("ddp", "fsdp", "relay"):
        for key in ("loss", "val_loss", "grad_norm", BALANCE, "router/entropy/1"):
            one, other = ([r[key] for r in curve(tmp_path / run) if key in r] for run in ("one", name))
            assert len(one) > 1 and one == pytest.approx(other, rel=1e-4, abs=1e-7), (name, key)
        found = weights(tmp_path / name)
        for key, parameter in weights(tmp_path / "one").items():
            assert (found[key] - parameter).norm() <= 1e-4 * (parameter - before[key]).norm(), (name, key)
