"""What is recomputed and compiled changes no result, and memory is kept for blocks that a gradient passes through."""

from functools import partial

import pytest
import torch

from pipeline.models import load
from pipeline.models.architecture.blocks import decoder_blocks
from pipeline.training.kernels.attention import choose_attention
from pipeline.training.kernels.blocks import choose_compile, prepare_blocks
from pipeline.training.kernels.head import PLAIN
from pipeline.training.methods.optim import build_adamw
from pipeline.training.methods.strategy import Lora
from pipeline.training.packed_loss import PackedLoss

CPU = torch.device("cpu")
MIB = 2**20
DEEP = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 40, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
NEW = range(4, 40, 5)  # 32 + 8: the last block of each group of five


def batch(tokens, rows=1):
    ids = torch.randint(3, 300, (rows, tokens), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(tokens // 4), torch.arange(tokens - tokens // 4)]).expand(rows, -1)
    return ids, ids.roll(-1, 1), positions


def prepared(directory, trained=(1, 3), kernel="documents", checkpointing="off", compiled=False):
    """A model of which these blocks train."""
    model = load(directory).requires_grad_(False)
    choose_attention(model, kernel, CPU)
    for position in trained:
        decoder_blocks(model)[position].requires_grad_(True)
    prepare_blocks(model.train(), checkpointing, compiled)
    return model


def step(model, tokens=96, rows=2):
    """Loss and gradients."""
    loss = PackedLoss(model, PLAIN)(*batch(tokens, rows))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kernel", ["documents", "sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("config", [{}, {"model_type": "mixtral", "num_local_experts": 4}], ids=["llama", "mixtral"])
def test_recomputing_changes_no_bit(make_model, kernel, checkpointing, config):
    directory = make_model(**config)
    loss, gradients = step(prepared(directory, kernel=kernel))
    again, recomputed = step(prepared(directory, kernel=kernel, checkpointing=checkpointing))
    assert torch.equal(loss, again) and gradients.keys() == recomputed.keys()
    assert all(torch.equal(gradients[n], recomputed[n]) for n in gradients)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_dropout_is_recomputed_as_it_fell(make_model, checkpointing):
    found = []
    for policy in ("off", checkpointing):
        loaded = load(make_model())
        torch.manual_seed(0)
        model = Lora(4, 8, 0.5, "all-linear").apply(loaded, [])
        prepare_blocks(loaded, policy, False)
        model.train()
        torch.manual_seed(1)
        found.append(step(model))
    (loss, gradients), (again, recomputed) = found
    assert torch.equal(loss, again) and all(torch.equal(gradients[n], recomputed[n]) for n in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
@pytest.mark.parametrize("kernel", ["documents", "sdpa"])
def test_compiling_changes_the_order_of_sums_only(make_model, checkpointing, kernel):
    directory = make_model()
    loss, gradients = step(prepared(directory, kernel=kernel))
    compiled = prepared(directory, kernel=kernel, checkpointing=checkpointing, compiled=True)
    other, got = step(compiled)
    torch.testing.assert_close(other, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())
    compiled.zero_grad()
    again, bits = step(compiled)
    assert torch.equal(other, again) and all(torch.equal(got[n], bits[n]) for n in got)


def saved_bytes(model, tokens=512):
    """Bytes that autograd keeps for the backward pass, parameters left out; each storage once."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        PackedLoss(model, PLAIN)(*batch(tokens))
    return sum(storage.nbytes() for storage in kept.values())


def test_saved_activations_of_32_and_8_blocks(make_model):
    """Full: the inputs of the 36 blocks from the first new one on, 0.5 MiB each, and the loss's."""
    kept = {p: saved_bytes(prepared(make_model(**DEEP), NEW, checkpointing=p)) for p in ("off", "full")}
    assert kept["full"] <= 20 * MIB and kept["off"] > 8 * kept["full"]


@pytest.mark.slow
def test_each_policy_holds_less_memory_than_the_one_before(make_model):
    """Counted by the allocator, which also sees what selective checkpointing holds outside of autograd."""
    held = {}
    for policy in ("off", "selective", "full"):
        model = prepared(make_model(**DEEP), NEW, checkpointing=policy)
        with torch.profiler.profile(profile_memory=True) as profile:
            loss = PackedLoss(model, PLAIN)(*batch(512))
        held[policy] = sum(event.self_cpu_memory_usage for event in profile.key_averages())
        del loss
    assert held["full"] < 0.25 * held["selective"] and held["selective"] < held["off"]


def test_checkpointing_the_trainable_blocks_alone_keeps_six_times_as_much(make_model):
    """LLaMA-Factory's rule, for comparison."""
    model = prepared(make_model(**DEEP), NEW)
    for position in NEW:
        block = decoder_blocks(model)[position]
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    assert saved_bytes(model) > 120 * MIB


def test_the_frozen_prefix_has_no_graph_and_the_frozen_rest_no_weight_gradient(make_model):
    model = prepared(make_model(), trained=[2])
    graph = {}
    for position, block in enumerate(decoder_blocks(model)):
        block.register_forward_hook(lambda _, __, out, at=position: graph.__setitem__(at, out.requires_grad))
    embedded = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: embedded.append(out.requires_grad))
    _, gradients = step(model)
    assert graph == {0: False, 1: False, 2: True, 3: True} and embedded == [False]
    assert {name.split(".")[2] for name in gradients} == {"2"}


@pytest.mark.slow
def test_frozen_blocks_below_keep_nothing(make_model):
    kept = [saved_bytes(prepared(make_model(**DEEP), [at])) for at in (39, 20)]
    assert kept[0] < kept[1] / 10  # one block and the loss against twenty blocks


def test_optimizer_state_is_three_copies_of_what_trains(make_model):
    """fp32 master weights and two moments (and a step count), of a model in bf16."""
    model = load(make_model("bfloat16")).requires_grad_(False)
    block = decoder_blocks(model)[2].requires_grad_(True)
    for parameter in block.parameters():
        parameter.data = parameter.data.float()
    optimizer = build_adamw(model.named_parameters(), 1e-3, (0.9, 0.95), 1e-8, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        PackedLoss(model, PLAIN)(*batch(32)).backward()
    optimizer.step()
    new = sum(p.numel() for p in block.parameters())
    moments = [s for state in optimizer.state.values() for n, s in state.items() if n != "step"]
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(t.numel() * t.element_size() for t in moments + masters) == 3 * 4 * new
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("compiled", "flops", "expected"),
    [(False, 1e20, False), (True, 1.0, True), ("auto", 1e20, True), ("auto", 1e9, False)],
)
def test_compiling_by_name_and_by_the_length_of_a_run(compiled, flops, expected, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    assert choose_compile(compiled, CPU, flops, "bf16", False) is expected
    assert choose_compile(compiled, CPU, flops, "fp32", False) is (compiled is True)


def test_compiling_without_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert choose_compile("auto", CPU, 1e20, "bf16", False) is False
    with pytest.raises(ValueError, match=r"compile=true needs a C\+\+ compiler"):
        choose_compile(True, CPU, 1.0, "fp32", False)
    with pytest.raises(ValueError, match="use true, false or auto"):
        choose_compile("yes", CPU, 1.0, "fp32", False)


def test_an_unknown_policy(make_model):
    with pytest.raises(ValueError, match="checkpointing='some' is not known; use one of off, selective, full"):
        prepared(make_model(), checkpointing="some")
