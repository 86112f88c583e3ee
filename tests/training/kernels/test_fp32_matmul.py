"""bf16 products made in fp32: the same sums rounded once, in every operator, forwards and backwards."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models import load
from pipeline.training.kernels import fp32_matmul as products
from pipeline.training.kernels.attention import choose_attention
from pipeline.training.kernels.blocks import prepare_blocks
from pipeline.training.kernels.fp32_matmul import ROUNDED, choose_fp32_matmul, fp32_matmul, multiplies_bf16
from pipeline.training.kernels.head import PLAIN
from pipeline.training.packed_loss import PackedLoss
from pipeline.training.runtime import StoppedError
from tests.training.kernels.test_blocks import batch
from tests.training.test_fit import expanded, losses, same, store, train, weights  # noqa: F401

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_UNITS, UNITS = {"avx2": True, "amx_bf16": False}, {"amx_bf16": True}


def operands(*shapes):
    torch.manual_seed(0)
    return [torch.randn(*shape).bfloat16().requires_grad_() for shape in shapes]


def grouped(x, w):
    return torch._grouped_mm(x, w, offs=torch.tensor([8, 16, 24], dtype=torch.int32))


PRODUCTS = {
    "linear": (functional.linear, [(6, 48), (32, 48)]),
    "linear with a bias": (functional.linear, [(2, 6, 48), (32, 48), (32,)]),
    "in batches": (torch.matmul, [(3, 6, 48), (3, 48, 32)]),
    "added": (torch.baddbmm, [(3, 6, 32), (3, 6, 48), (3, 48, 32)]),
    "of experts": (grouped, [(24, 48), (3, 48, 32)]),
    "attention": (lambda *x: functional.scaled_dot_product_attention(*x, is_causal=True), [(1, 2, 9, 16)] * 3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_and_its_gradients_are_those_of_fp32_rounded(name):
    """Gradients to a step of bf16: some are sums; attention's backward pass starts from its rounded result."""
    product, shapes = PRODUCTS[name]
    narrow, wide = operands(*shapes), [x.detach().float().requires_grad_() for x in operands(*shapes)]
    with fp32_matmul(True):
        out = product(*narrow)
        gradient = torch.randn_like(out)
        out.backward(gradient)
    exact = product(*wide)
    exact.backward(gradient.float())
    assert out.dtype == torch.bfloat16 and torch.equal(out, exact.bfloat16())
    for got, expected in zip(narrow, wide, strict=True):
        assert got.grad.dtype == torch.bfloat16
        absolute = 2**-6 if name == "attention" else 0.0
        torch.testing.assert_close(got.grad, expected.grad.bfloat16(), rtol=2**-7 + absolute, atol=absolute)


def test_into_a_tensor_that_is_there():
    x, w = (one.detach() for one in operands((6, 48), (48, 32)))
    out = torch.empty(6, 32, dtype=torch.bfloat16)
    with fp32_matmul(True):
        assert torch.mm(x, w, out=out) is out
    assert torch.equal(out, (x.float() @ w.float()).bfloat16())


class Products(TorchDispatchMode):
    """What reaches torch of the operators that are widened: the dtype of the first operand."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in ROUNDED:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
def test_no_product_of_a_step_is_left_to_bf16(make_model, attention, checkpointing):
    assert set(reached(load(make_model("bfloat16")), attention, checkpointing)) == {torch.float32}


def test_no_product_of_experts_is_left_to_bf16(make_model):
    mixtral = make_model("bfloat16", model_type="mixtral", num_local_experts=4)
    assert set(reached(load(mixtral), "documents", "off")) == {torch.float32}


def reached(model, attention, checkpointing):
    model.requires_grad_(False)
    model.config.use_cache = False
    for parameter in model.model.layers[1].requires_grad_(True).parameters():
        parameter.data = parameter.data.float()
    choose_attention(model, attention, CPU)
    prepare_blocks(model, checkpointing, compiled=False)
    with Products() as seen, fp32_matmul(True):
        with torch.autocast("cpu", torch.bfloat16):
            loss = PackedLoss(model, PLAIN)(*batch(32))
        loss.backward()
    return seen.dtypes


def test_a_run_differs_from_torchs_own_products_by_rounding(expanded, store, tmp_path):  # noqa: F811
    for wide in (True, False):
        facts = train(expanded, tmp_path / str(wide), store, precision="bf16", launch={"fp32_matmul": wide})
        assert facts["fp32_matmul"] is wide
    pairs = zip(losses(tmp_path / "True"), losses(tmp_path / "False"), strict=True)
    assert all(a[1] == pytest.approx(b[1], rel=1e-3) for a, b in pairs if a[1])


def test_a_stopped_run_resumes_to_the_same_bits(expanded, store, tmp_path):  # noqa: F811
    options = {"precision": "bf16", "launch": {"fp32_matmul": True, "preflight": True}}
    train(expanded, tmp_path / "whole", store, **options)
    with pytest.raises(StoppedError):
        train(expanded, tmp_path / "cut", store, stop_after=3, **options)
    train(expanded, tmp_path / "cut", store, **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.parametrize(
    ("requested", "able", "device", "precision", "compiled", "expected"),
    [
        ("auto", NO_UNITS, CPU, "bf16", "auto", True),
        ("auto", NO_UNITS, CPU, "bf16", False, True),
        ("auto", NO_UNITS, CPU, "bf16", True, False),
        ("auto", NO_UNITS, CPU, "fp32", "auto", False),
        ("auto", UNITS, CPU, "bf16", "auto", False),
        ("auto", {"bf16": True}, CPU, "bf16", "auto", False),
        ("auto", NO_UNITS, CUDA, "bf16", "auto", False),
        (False, NO_UNITS, CPU, "bf16", "auto", False),
        (True, UNITS, CPU, "bf16", "auto", True),
    ],
)
def test_where_products_are_widened(requested, able, device, precision, compiled, expected, monkeypatch):
    monkeypatch.setattr(products.torch.cpu, "get_capabilities", lambda: able)
    assert choose_fp32_matmul(requested, device, precision, compiled) is expected
    assert multiplies_bf16(device) is (able is not NO_UNITS or device is CUDA)


@pytest.mark.parametrize(
    ("requested", "device", "precision", "compiled", "message"),
    [
        ("yes", CPU, "bf16", "auto", "use true, false or auto"),
        (True, CUDA, "bf16", "auto", "precision=bf16 on cuda with compile=auto. Use fp32_matmul=auto"),
        (True, CPU, "fp32", "auto", "precision=fp32 on cpu"),
        (True, CPU, "bf16", True, "with compile=true"),
    ],
)
def test_what_cannot_be_widened_is_refused(requested, device, precision, compiled, message):
    with pytest.raises(ValueError, match=message):
        choose_fp32_matmul(requested, device, precision, compiled)
