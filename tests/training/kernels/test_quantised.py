"""A frozen base in fewer bits: new blocks in full precision, and what is saved is the base as it was."""

import pytest
import torch

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.architecture.blocks import decoder_blocks
from pipeline.records.expansion import read_expansion
from pipeline.training.kernels.head import PLAIN
from pipeline.training.kernels.quantised import CompressedLinear, HalfLinear, QuantisedLinear, held_tensors, hold_frozen
from pipeline.training.methods.strategy import Lora, NewBlocks
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.settings import check_frozen_dtype

WIDE = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 64}


@pytest.fixture(scope="session")
def grown(make_model, tmp_path_factory):
    target = tmp_path_factory.mktemp("grown")
    source = read_source(make_model(**WIDE))
    write_expansion(BlockExpansion(2, 1).plan(source), source, target)
    return target


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_frozen_dtype(None)
    check_frozen_dtype("bf16")
    with pytest.raises(ValueError, match=r'frozen_dtype=nf4 needs bitsandbytes: pip install -e "\.\[quant\]"'):
        check_frozen_dtype("nf4")


def test_an_unknown_form():
    with pytest.raises(ValueError, match="use null, bf16, int8 or nf4"):
        check_frozen_dtype("int3")


@pytest.mark.parametrize(("form", "error"), [("int8", 0.02), ("nf4", 0.12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_its_rounded_weight(form, error, dtype):
    """Output and gradient are those of a plain layer that holds the expanded weight."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = torch.nn.Linear(128, 64, dtype=dtype).requires_grad_(False)
    layer = QuantisedLinear(plain, form)
    weight = layer.weight(dtype)
    assert (weight - plain.weight).norm() <= error * plain.weight.norm()
    x = torch.randn(2, 5, 128, dtype=dtype, requires_grad=True)
    out = layer(x)
    wanted = torch.nn.functional.linear(x, weight, plain.bias)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    gradient = torch.randn_like(out)
    got, expected = (torch.autograd.grad(o, x, gradient)[0] for o in (out, wanted))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_in_bf16_is_the_plain_layer_to_the_bit(bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(128, 64, bias, dtype=torch.bfloat16).float().requires_grad_(False)
    layer = HalfLinear(plain)
    assert layer.held.dtype == torch.bfloat16 and not list(layer.named_parameters())[int(bias) :]
    x = torch.randn(2, 5, 128, requires_grad=True)
    out, wanted = layer(x), plain(x)
    assert torch.equal(out, wanted)
    gradient = torch.randn_like(out)
    assert torch.equal(*(torch.autograd.grad(o, x, gradient)[0] for o in (out, wanted)))


@pytest.mark.parametrize(("form", "bits"), [("bf16", 16), ("int8", 8.2), ("nf4", 4.6)])
def test_new_blocks_keep_full_precision_and_the_base_shrinks(grown, form, bits):
    if form != "bf16":
        pytest.importorskip("bitsandbytes")
    model = NewBlocks().apply(load(grown), read_expansion(grown).module_parameters)
    before = sum(p.numel() for p in model.parameters())
    assert hold_frozen(model, form) == 4 * 7  # four frozen blocks of seven layers
    frozen = before - sum(p.numel() for p in model.parameters())
    held = {n: t for n, t in held_tensors(model).items() if not n.endswith(".values")}
    assert 8 * sum(t.numel() * t.element_size() for t in held.values()) <= bits * frozen
    positions = read_expansion(grown).by_position
    for position, block in enumerate(decoder_blocks(model)):
        assert any(isinstance(m, CompressedLinear) for m in block.modules()) == (position not in positions)
    ids = torch.arange(3, 35)[None]
    PackedLoss(model, PLAIN)(ids, ids.roll(-1, 1), torch.arange(32)[None]).backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(read_expansion(grown).new_parameters)


def test_adapters_and_models_without_a_frozen_block_are_refused(make_model):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ValueError, match="found no frozen linear layer"):
        hold_frozen(load(make_model()), "nf4")
    loaded = load(make_model())
    Lora(4, 8, 0.0, "all-linear").apply(loaded, [])
    with pytest.raises(ValueError, match="is for strategy new_blocks"):
        hold_frozen(loaded, "nf4")
