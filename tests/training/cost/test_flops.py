"""FLOPs: the arithmetic and the counting agree with each other, with a whole step as executed, and with the papers."""

import json

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from pipeline.expansion.layout import Layout
from pipeline.models.architecture.shape import shape_of
from pipeline.training.cost.count import FORMULAS, count_cost
from pipeline.training.cost.flops import Cost, Trains, Window, cost_of
from pipeline.training.cost.peak import Peak, data_sheet, matmul_rate, peak
from pipeline.training.cost.throughput import Counts, Throughput, utilisation
from pipeline.training.kernels.base_copy import base_copy
from pipeline.training.kernels.head import PLAIN
from pipeline.training.methods.existing_blocks import ExistingBlocks
from pipeline.training.methods.kl_to_base import KlToBase
from pipeline.training.methods.penalty import with_penalties
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from pipeline.training.packed_loss import PackedLoss
from tests.expansion.architectures import EXACT

LLAMA = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
NEW = (3, 5)
WAYS = {"new_blocks": NewBlocks(), "full": Full(), "lora": Lora(4, 8, 0.0, "all-linear")}


def build(strategy, config=LLAMA, new=NEW, attention="eager"):
    """A causal model and what the strategy makes of it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**config)
    causal = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    causal.config.use_cache = False
    names = [n for n, _ in causal.named_parameters() if any(f".{i}." in n for i in new)]
    return causal, strategy.apply(causal, names).train()


def trains(strategy):
    return strategy.footprint()


def executed(model, rows, length, labelled, penalties=None, base=None):
    """FLOPs of a whole step as PyTorch carries it out."""
    ids = torch.randint(0, 64, (rows, length))
    labels = ids.clone()
    labels[:, labelled:] = -100
    places = torch.arange(length).expand(rows, length)
    with FlopCounterMode(display=False) as counter:
        PackedLoss(model, PLAIN, chunk=50, penalties=penalties, base=base)(ids, labels, places).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("tied", "length"), [(True, 96), (False, 64)])
def test_a_step_needs_what_is_executed(way, tied, length):
    """To the last operation, with plain attention, which multiplies every pair: T^2 of them."""
    strategy = WAYS[way]
    config = {**LLAMA, "tie_word_embeddings": tied}
    _, model = build(strategy, config)
    shape = shape_of(config).with_new(set(NEW))
    found = executed(model, 2, length, 40)
    assert cost_of(shape, trains(strategy)).needed(2 * length, 2 * 40, lambda _: 2 * length**2) == found


@pytest.mark.parametrize(
    "strategy",
    [
        ExistingBlocks(blocks=NEW),
        ExistingBlocks(expansion=Layout(num_groups=3)),
        Lora("matched", None, 0.0, "all-linear", expansion=Layout(num_groups=3)),
    ],
)
def test_what_follows_an_expansion_needs_what_is_executed(strategy):
    _, model = build(strategy, new=())
    shape, found = strategy.footprint().of(shape_of(LLAMA))
    needed = cost_of(shape, found).needed(2 * 64, 2 * 40, lambda _: 2 * 64**2)
    assert needed == executed(model, 2, 64, 40)
    assert found.num_trainable(shape) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", ["all", "labels", "prompt"])
def test_a_step_near_its_base_needs_what_is_executed(way, tokens):
    """The base's forward pass, both heads where distributions are compared, and the head's backward pass there."""
    causal, model = build(WAYS[way])
    penalties = {"kl": KlToBase(1.0, 1.0, tokens)}
    base = base_copy(causal, torch.device("cpu"))
    cost = with_penalties(cost_of(shape_of(LLAMA).with_new(set(NEW)), trains(WAYS[way])), penalties)
    found = executed(model, 2, 96, 40, penalties, base)
    assert cost.needed(2 * 96, 2 * 40, lambda _: 2 * 96**2) == found
    assert cost.six_nd(1) == count_cost(causal).six_nd(1)


@pytest.mark.parametrize("way", WAYS)
def test_counting_and_arithmetic_agree(way):
    causal, _ = build(WAYS[way])
    assert count_cost(causal) == cost_of(shape_of(LLAMA).with_new(set(NEW)), trains(WAYS[way]))


def test_counting_leaves_the_model_alone():
    causal, _ = build(NewBlocks(), attention="sdpa")
    before = {n: p.clone() for n, p in causal.named_parameters()}
    state = torch.get_rng_state()
    assert count_cost(causal) is not None
    assert torch.equal(state, torch.get_rng_state()) and causal.config._attn_implementation == "sdpa"
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in causal.named_parameters())


def test_a_frozen_prefix_and_frozen_matrices_cost_nothing_backward():
    shape = shape_of(LLAMA)
    low, high = (cost_of(shape.with_new({at}), Trains("new_blocks")) for at in (0, 5))
    one = low.forward / 6
    assert high.backward == 2 * one and low.backward == 7 * one
    assert low.forward == high.forward and high.head_backward == high.head_forward
    assert high.windows[0].backward == 2 * high.windows[0].forward / 6


FAMILIES = ["Mixtral", "GPT-2"]
SLOW_FAMILIES = [
    "Mistral", "Qwen2", "Qwen3", "Qwen3-MoE", "Gemma 2", "Phi-3", "GPT-NeoX", "OLMoE", "StarCoder2", "DeepSeek-V3",
    "Falcon", "SmolLM3",
]  # fmt: skip


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES)])
def test_other_families_are_counted(name):
    """Against what one row on real numbers executes: attention in its plain form, experts as they are routed."""
    causal, _ = build(Full(), {**EXACT[name], "max_position_embeddings": 512, "n_positions": 512}, new=())
    cost = count_cost(causal)
    assert cost is not None
    length = 48
    ids = torch.randint(3, 60, (1, length))
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    needed = cost.needed(length, 0, lambda _: length**2)
    assert needed == pytest.approx(counter.get_total_flops(), rel=0.01)
    if (shape := shape_of(causal.config.to_dict())) is not None:
        assert cost.forward == pytest.approx(cost_of(shape, Trains("full")).forward, rel=0.001)


def grown(shape, groups, size):
    return shape.grown(
        [
            one
            for g in range(groups)
            for one in [*((g * size + i, False) for i in range(size)), (g * size + size - 1, True)]
        ]
    )


def test_known_models_at_known_lengths():
    """LLaMA-Pro 8B at 4,096 and SmolLM2-135M 30 -> 36 at 512, worked out by hand from the matrices' sizes."""
    llama = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
    }  # fmt: skip
    small = {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    }  # fmt: skip
    new = Trains("new_blocks")
    pro = grown(shape_of(llama), 8, 4)
    assert pro.num_parameters == 8_357_482_496 and new.num_trainable(pro) == 1_619_066_880
    assert cost_of(pro, new).of_rows(4096) / 4096 == pytest.approx(38.28e9, rel=1e-3)
    assert cost_of(grown(shape_of(small), 6, 5), new).of_rows(512) / 512 == pytest.approx(687.8e6, rel=1e-3)


def test_a_window_bounds_the_pairs():
    full, near = Window(None, 1.0, 2.0), Window(3, 1.0, 2.0)
    assert [full.pairs(p) for p in range(5)] == [1, 2, 3, 4, 5] and [near.pairs(p) for p in range(5)] == [1, 2, 3, 3, 3]
    assert Cost(0, 0, 0, 0, (near,)).of_rows(5) == 12 * 3


@pytest.mark.parametrize(
    ("strategy", "found"),
    [
        (Lora(4, 8, 0.0, ["q_proj"]), None),
        (Lora(4, 8, 0.0, "all-linear"), Trains("lora", 4)),
        (NewBlocks(), Trains("new_blocks")),
        (Full(), Trains("full")),
    ],
)
def test_a_strategy_tells_its_footprint(strategy, found):
    assert strategy.footprint() == found


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="cannot be told"):
        cost_of(shape_of(LLAMA), Trains("new_blocks"))
    assert not Trains("lora", 4).fits(shape_of({**EXACT["Mixtral"]}))


def row(spans, length, labelled):
    places = np.concatenate([np.arange(n) for n in spans])
    padding = length - len(places)
    labels = np.full(length, -100)
    labels[:labelled] = 1
    return {
        "input_ids": np.zeros(length, dtype=np.int64),
        "labels": labels,
        "position_ids": np.pad(places, (0, padding)),
        "segment_ids": np.pad(np.repeat(np.arange(len(spans)), spans), (0, padding), constant_values=-1),
    }


def test_documents_padding_and_labels_are_counted_as_they_are():
    cost = Cost(100.0, 200.0, 7.0, 7.0, (Window(None, 1.0, 2.0), Window(2, 10.0, 20.0)))
    measured = Throughput(10, 0, cost)
    measured.add([row([4, 3], 10, 5)])
    measured.add([row([6], 10, 2)])
    found = measured.flops()
    pairs, near = 10 + 6 + 21, 7 + 5 + 11
    needed = 13 * 300 + 7 * 14 + 3 * pairs + 30 * near
    assert found["flops_per_token"] == round(needed / 13)
    assert found["flops_per_token_6nd"] == round(6 * (107 / 2))
    assert found["flops_per_s"] / found["flops_per_s_6nd"] == pytest.approx(needed / (13 * 321), rel=1e-3)
    assert Throughput(10, 0).flops() == {}


def test_what_a_row_needs_whatever_it_holds_is_counted_for_each():
    """Also of those before a resume; and a checkpoint that was written before rows were counted is read."""
    cost = Cost(100.0, 200.0, 7.0, 7.0, (), row_forward=1e6, row_backward=2e6)
    before = Counts.read({"labels": 1, "positions": [1, 1], "rows": 2})
    measured = Throughput(10, 1, cost, before=before)
    three_images = {**row([6], 10, 2), "pixel_values": np.zeros((3, 1, 2, 2))}
    measured.add([row([10], 10, 5), row([4], 10, 2), three_images])
    assert measured.flops()["training_flops"] == 22 * 300 + 10 * 14 + 7 * 3e6
    assert cost.of_rows(10, 4) == 40 * 314 + 4 * 3e6
    near = KlToBase(1.0, 1.0, "labels").adds(cost)  # the base's forward pass beside
    assert near.of_rows(10, 4) == 40 * (414 + 21) + 4 * 4e6
    assert Counts.read(json.loads(json.dumps(vars(measured.counts)))) == measured.counts
    assert Counts.read({"labels": 1, "positions": [1, 1]}).tokens == 2


def test_utilisation_is_a_share_of_the_peak():
    found = utilisation({"flops_per_s": 25e9, "flops_per_s_6nd": 40e9}, Peak(100e9, "measured"))
    assert found == {"mfu": 0.25, "mfu_6nd": 0.4, "peak_flops_per_s": 100 * 10**9, "peak_source": "measured"}
    assert utilisation({}, Peak(1.0, "measured")) == {}


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA A10G", None),
        ("AMD Instinct MI300X", 1307), ("Some GPU", None),
    ],
)  # fmt: skip
def test_data_sheets_by_the_devices_own_name(name, tera):
    assert data_sheet(name) == (None if tera is None else tera * 1e12)


def test_a_cpus_rate_is_measured_once():
    first = peak(torch.device("cpu"), "fp32")
    assert first.source == "measured" and first.flops_per_s > 1e8
    assert matmul_rate(torch.device("cpu"), torch.float32) == first.flops_per_s
