"""OpT-DeUS: the plan by hand and by the textbook loop, each tensor by its equation, places, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.expansion.methods.opt_deus import ALIGNMENTS, OptDeus
from pipeline.expansion.methods.transport import Transport
from pipeline.expansion.pack.attach import attach, detach, extract
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models.save import save_trained
from pipeline.records.expansion import read_expansion
from tests.expansion.meta_sources import LLAMA_3_1_8B, LLAMA_3_2_1B, meta_source, num_parameters

EPSILON = 0.06
TOP_HALF = {"position": "top_half", "num_groups": None}
NEW, LOWER, UPPER = (f"model.layers.{block}." for block in (2, 1, 2))  # of the first gap in the top half of four


def method(alignment="transport", **changes):
    return OptDeus(
        **{"alignment": alignment, "regularisation": EPSILON, "num_iterations": 10_000, **TOP_HALF, **changes}
    )


def expanded(source, target, *args, **changes):
    found = read_source(source)
    plan = write_expansion(method(*args, **changes).plan(found, None), found, target)
    return plan, load_file(source / "model.safetensors"), load_file(target / "model.safetensors")


def textbook(rows, others, regularisation=EPSILON, num_iterations=2000):
    """Sinkhorn-Knopp as it is written down, on the kernel itself."""
    kernel = (-torch.cdist(rows, others) / regularisation).exp()
    share = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    left = share.clone()
    for _ in range(num_iterations):
        right = share / (kernel.T @ left)
        left = share / (kernel @ right)
    return left[:, None] * kernel * right


def test_the_plan_of_two_rows_is_the_one_by_hand():
    """Costs [[a, b], [c, d]] give [[x, 1/2 - x], [1/2 - x, x]], x^2 / (1/2 - x)^2 = exp((b + c - a - d) / epsilon)."""
    epsilon = 0.3
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    others = torch.tensor([[0.3, 0.4], [1.0, 0.1]], dtype=torch.float64)
    (a, b), (c, d) = ((0.5, math.hypot(1, 0.1)), (math.hypot(0.7, 0.4), 0.1))
    r = math.exp((b + c - a - d) / (2 * epsilon))
    x = r / (2 * (1 + r))
    expected = torch.tensor([[x, 0.5 - x], [0.5 - x, x]], dtype=torch.float64)
    torch.testing.assert_close(Transport(epsilon, 10_000)(rows, others), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(Transport(epsilon, 10_000, rescaled=True)(rows, others), 2 * expected, rtol=0, atol=1e-8)


def test_the_plan_is_that_of_the_textbook_and_meets_its_marginals():
    torch.manual_seed(0)
    rows, others = torch.randn(2, 12, 6, dtype=torch.float64) * 0.1
    plan = Transport(EPSILON, 10_000)(rows, others)
    torch.testing.assert_close(plan, textbook(rows, others), rtol=0, atol=1e-8)
    share = torch.full((12,), 1 / 12, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(1), share, rtol=0, atol=1e-12)
    torch.testing.assert_close(plan.sum(0), share, rtol=0, atol=1e-8)


def test_rows_that_are_far_apart_are_moved_where_the_textbook_kernel_is_zero():
    """exp(-100 / 0.06) is 0 in fp64: permuted rows still find each other."""
    rows = torch.arange(4, dtype=torch.float64)[:, None] * 1000
    order = torch.tensor([2, 0, 3, 1])
    plan = Transport(EPSILON, 10_000, rescaled=True)(rows, rows[order] + 100)
    assert textbook(rows, rows[order] + 100).isnan().any()
    torch.testing.assert_close(plan.T @ rows, rows[order], rtol=0, atol=1e-6)


def test_too_few_iterations_are_told():
    torch.manual_seed(0)
    rows, others = torch.randn(2, 12, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"12 rows still misses its marginals by .* after num_iterations=2; raise it"):
        Transport(EPSILON, 2)(rows, others)


@pytest.mark.parametrize("config", [{}, {"attention_bias": True, "mlp_bias": True}], ids=["plain", "biases"])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_each_tensor_by_its_equation(make_model, tmp_path, alignment, config):
    _, old, new = expanded(make_model(**config), tmp_path, alignment)
    weights = {name: tensor.double() for name, tensor in old.items()}

    def between(lower, upper):
        if alignment == "neighbour_mean":
            return torch.eye(len(lower), dtype=torch.float64)
        if alignment == "half_upper":
            return torch.zeros(len(lower), len(lower), dtype=torch.float64)
        return textbook(lower, upper) * (len(lower) if alignment == "rescaled" else 1)

    output = between(*(weights[f"{block}self_attn.o_proj.weight"] for block in (LOWER, UPPER)))
    seen = set()
    for name in (name for name in new if name.startswith(NEW)):
        rest = name.removeprefix(NEW)
        lower, upper = weights[LOWER + rest], weights[UPPER + rest]
        module = rest.rpartition(".")[0]
        if module in ("self_attn.o_proj", "mlp.down_proj"):
            expected = torch.zeros_like(lower)
        elif rest == "input_layernorm.weight":
            expected = (lower + upper) / 2
        elif rest == "post_attention_layernorm.weight":
            expected = (lower @ (output + torch.eye(len(output))) / 2 + upper) / 2
        else:
            matrix = weights[f"{LOWER}{module}.weight"]
            matrix = matrix @ output if module.startswith("mlp.") else matrix
            plan = between(matrix, weights[f"{UPPER}{module}.weight"])
            expected = (plan.T @ (matrix if rest.endswith("weight") else lower) + upper) / 2
        torch.testing.assert_close(new[name].double(), expected, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        seen.add(rest)
    assert len(seen) == (9 + 7 if config else 9)


def test_as_released_the_lower_block_enters_by_one_part_in_n(make_model, tmp_path):
    """The rows of T sum to 1/n: what is fused differs from half the upper block by at most the lower's largest / 2n."""
    _, old, new = expanded(make_model(), tmp_path)
    name = "self_attn.q_proj.weight"
    bound = old[LOWER + name].abs().max() / (2 * len(old[LOWER + name]))
    assert 0 < (new[NEW + name] - old[UPPER + name] / 2).abs().max() <= bound * (1 + 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("alignment", ["transport", "half_upper"])
def test_the_expanded_model_is_its_source_bit_for_bit(make_model, tmp_path, alignment, family, dtype):
    source = make_model(dtype, model_type=family, **({"head_dim": 8} if family == "qwen3" else {}))
    plan, *_ = expanded(source, tmp_path, alignment)
    proof = verify_identity(source, tmp_path, num_tokens=24)
    assert plan.exact and proof.exact and proof.max_abs_difference == 0 and proof.dtype == dtype


def test_what_is_recorded_and_trains(make_model, tmp_path):
    plan, old, new = expanded(make_model(), tmp_path)
    record = read_expansion(tmp_path)
    assert [(block.position, block.origin) for block in record.blocks] == [(2, 1), (4, 2)]
    assert set(record.new_parameters) == {name for name in new if name.startswith((NEW, "model.layers.4."))}
    assert record.method == "opt_deus" and record.exact and record.settings["alignment"] == "transport"
    assert torch.equal(new["model.layers.3.mlp.up_proj.weight"], old["model.layers.2.mlp.up_proj.weight"])
    assert plan.recipes["model.layers.2.self_attn.o_proj.weight"].kind == "zeros"


def test_a_pack_of_its_blocks_goes_on_and_off(make_model, tmp_path):
    base = make_model("bfloat16")
    plan, *_ = expanded(base, tmp_path / "grown")
    values = load_file(tmp_path / "grown/model.safetensors")
    new = {name: torch.randn(values[name].shape) for name in plan.new_parameters}
    save_trained(tmp_path / "grown", tmp_path / "trained", new)
    extract(tmp_path / "trained", base, tmp_path / "law.pack", "law")
    attach(base, [tmp_path / "law.pack"], tmp_path / "attached", save="full")
    assert verify_identity(tmp_path / "trained", tmp_path / "attached", num_tokens=24).exact
    detach(tmp_path / "attached", None, tmp_path / "again")
    assert verify_identity(base, tmp_path / "again", num_tokens=24).exact


def test_the_papers_sizes():
    """11.5B of Llama 3.1 8B and 1.7B of Llama 3.2 1B; the places are those of the authors' script."""
    for config, places, before, after in (
        (LLAMA_3_1_8B, range(16, 47, 2), 8_030_261_248, 11_520_053_248),
        (LLAMA_3_2_1B, range(8, 23, 2), 1_235_814_400, 1_722_386_432),
    ):
        source = meta_source(config)
        plan = method().plan(source, None)
        assert [block.position for block in plan.blocks] == list(places)
        assert sum(math.prod(t.shape) for t in source.tensors.values()) == before
        assert num_parameters(plan, source) == after


def test_places_between_two_blocks():
    interleaved = [i for i, s in enumerate(method(position="interleaved", num_groups=2).slots(4)) if s.new]
    assert interleaved == [2, 4]
    assert method(num_groups=1).neighbours(6) == {5: (4, 5)}
    for layout in ({"position": "suffix", "num_groups": 1}, {"per_group": 2, "origin": "last"}):
        with pytest.raises(ValueError, match=r"OptDeus makes one block between two of the model's; position"):
            method(**layout).check(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment": "best"}, "alignment='best' is not known; use one of transport, rescaled, neighbour_mean"),
        ({"regularisation": 0.0}, "regularisation=0.0 must be more than 0"),
        ({"num_iterations": 0}, "num_iterations=0 must be more than 0"),
        ({"num_groups": 3}, "top_half has 2 gaps in a model of 4 blocks"),
    ],
)
def test_settings_are_checked_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes).check(4)


@pytest.mark.parametrize("family", ["olmo2", "gemma2", "phi3"])
def test_blocks_of_another_anatomy_are_refused(make_model, family):
    config = {"pad_token_id": 0} if family == "phi3" else {}
    with pytest.raises(ValueError, match=r"aligns blocks of Llama's anatomy .*; block 1 differs in .*Use expand=block"):
        method().plan(read_source(make_model(model_type=family, **config)), None)


def test_the_config_names_the_fields_of_the_method():
    keys = yaml.safe_load((Path(__file__).parents[3] / "conf/expand/opt_deus.yaml").read_text())
    assert keys.pop("_target_") == f"{OptDeus.__module__}.OptDeus"
    assert set(keys) - {"skip", "save", "num_blocks"} == {field.name for field in dataclasses.fields(OptDeus)}
    OptDeus(**{key: value for key, value in keys.items() if key not in ("skip", "save", "num_blocks")}).check(32)
