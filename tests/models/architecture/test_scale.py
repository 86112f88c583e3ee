"""SCALE's modules: their start, their equations, what "preserve" preserves, and their place among the Auto classes."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from pipeline.models.architecture.scale import SIZES, OldPath, WidenedLinear, WidenedRMSNorm, scaled_config
from tests.models.architecture.ways import VARIANTS, random_base, reloaded, run_both_ways

WIDER = dict(zip(SIZES, (6, 1, 10), strict=True))
MODES = ("preserve", "adapt")


def make_pair(variant="llama", mode="preserve", dtype=torch.float32):
    """A random base with non-zero biases, and it widened, with the base's weights."""
    base = random_base(variant, dtype)
    wider_config = transformers.AutoConfig.for_model(**scaled_config(base.config.to_dict(), mode, WIDER))
    wider = transformers.AutoModelForCausalLM.from_config(wider_config, dtype=dtype).eval()
    missing, unexpected = wider.load_state_dict(base.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[-2] for name in missing} == {"new", "back"}
    return base, wider


def stir(model):
    """Trained-looking values in all that is new."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[-2] in ("new", "back"):
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_begins_as_its_base_bit_for_bit(variant, mode, dtype):
    base, wider = make_pair(variant, mode, dtype)
    assert all(torch.equal(a, b) for a, b in zip(run_both_ways(base), run_both_ways(wider), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_preserve_keeps_every_old_feature_whatever_was_learnt(variant):
    """Of each block's output, and of the logits but for the head's own term, to the bit."""
    base, wider = make_pair(variant)
    stir(wider)
    ids_BT = torch.randint(0, 97, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain, wide = (m(input_ids=ids_BT, output_hidden_states=True, use_cache=False) for m in (base, wider))
    for old, both in zip(plain.hidden_states, wide.hidden_states, strict=True):
        assert torch.equal(both[..., :32], old) and both.shape[-1] == 38 and both[..., 32:].abs().max() > 0
    term = wider.lm_head.back(wide.hidden_states[-1][..., 32:])
    assert torch.equal(wide.logits, plain.logits + term) and term.abs().max() > 0.1


def test_adapt_lets_the_old_features_read_the_new_ones():
    base, wider = make_pair(mode="adapt")
    stir(wider)
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        plain, wide = (m(input_ids=ids_BT, output_hidden_states=True).hidden_states for m in (base, wider))
    assert torch.equal(wide[0][..., :32], plain[0])
    assert all(
        not torch.allclose(both[..., :32], old, atol=1e-3) for old, both in zip(plain[1:], wide[1:], strict=True)
    )


def test_a_widened_map_is_the_block_matrix():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4).double()
    wide = WidenedLinear(linear, 3, 2, True, OldPath()).double()
    w12, (w21, w22) = wide.back.weight, wide.new.weight.split([5, 3], dim=1)
    matrix = torch.cat([torch.cat([linear.weight, w12], dim=1), torch.cat([w21, w22], dim=1)])
    x = torch.randn(7, 8, dtype=torch.float64)
    expected = x @ matrix.T + torch.cat([linear.bias, torch.zeros(2, dtype=torch.float64)])
    torch.testing.assert_close(wide(x), expected, rtol=1e-12, atol=1e-12)


def test_a_new_group_of_heads_reads_its_own_keys_and_one_token_gives_its_values_to_the_output():
    """One token attends to itself: the output matrix reads [v of each old group, twice; v of the new group, twice]."""
    attention = stir(make_pair(mode="adapt", dtype=torch.float64)[1]).model.layers[1].self_attn
    x_D = torch.randn(38, dtype=torch.float64)
    ones, zeros = torch.ones(1, 1, 8, dtype=torch.float64), torch.zeros(1, 1, 8, dtype=torch.float64)
    found, _ = attention(x_D[None, None], position_embeddings=(ones, zeros), attention_mask=None)
    groups = attention.v_proj(x_D).view(3, 8)
    assert attention.q_proj(x_D).shape == (6 * 8,)
    expected = attention.o_proj(torch.cat([groups[i // 2] for i in range(6)]))
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-12, atol=1e-12)


def test_the_norm_of_a_stock_model_of_greater_width_is_the_old_one_only_where_the_new_features_are_zero():
    """The algebra of the module's docstring, and why the two parts are normalised apart."""
    kind = transformers.models.llama.modeling_llama.LlamaRMSNorm
    norm, stock = kind(32, eps=1e-5).double(), kind(38, eps=1e-5 * 32 / 38).double()
    with torch.no_grad():
        norm.weight.normal_()
        stock.weight[:32] = norm.weight * (32 / 38) ** 0.5
    x, new = torch.randn(4, 32, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    wide = WidenedRMSNorm(norm, 6, OldPath())
    torch.testing.assert_close(stock(torch.cat([x, 0 * new], 1))[:, :32], norm(x), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(stock(torch.cat([x, new], 1))[:, :32], norm(x), rtol=1e-2)
    assert torch.equal(wide(torch.cat([x, new], 1))[:, :32], norm(x))


def gradients(model, new_alone, monkeypatch=None):
    """By name, after one backward pass of a loss."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not new_alone or name.split(".")[-2] in ("new", "back"))
    model.zero_grad()
    if monkeypatch:
        monkeypatch.setattr(OldPath, "of", lambda self, x, size: x[..., :size].contiguous())
    ids_BT = torch.arange(14)[None]
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_goes_through_old_features_that_nothing_trains_in(monkeypatch, mode):
    """And the gradients of all that trains are those of the whole graph."""
    model = stir(make_pair("qwen3", mode)[1])
    every = gradients(model, new_alone=False)
    assert not model.model.old_path.constant and every["model.layers.0.mlp.up_proj.weight"].any()
    found = gradients(model, new_alone=True)
    assert model.model.old_path.constant == (mode == "preserve")
    x = torch.randn(1, 3, 38, requires_grad=True)
    assert model.model.layers[1].mlp.up_proj.parts(x)[0].requires_grad == (mode == "adapt")
    whole = gradients(model, new_alone=True, monkeypatch=monkeypatch)
    assert found.keys() == whole.keys() and found.keys() < every.keys()
    for name, gradient in found.items():
        assert gradient.any(), name
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=0)
        torch.testing.assert_close(gradient, every[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["llama", "mistral with a window", "qwen3"])
def test_with_a_cache_beams_and_padding_it_generates_what_it_does_without(variant, mode):
    model = stir(make_pair(variant, mode, torch.float64)[1])
    whole, cached, _ = run_both_ways(model)
    torch.testing.assert_close(cached, whole, rtol=1e-9, atol=1e-9)
    ids_BT = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(2))
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[0, :3], mask_BT[0, :3] = 0, 0
    for beams in (1, 3):
        asked = {"attention_mask": mask_BT, "max_new_tokens": 6, "num_beams": beams, "do_sample": False}
        with_cache, without = (model.generate(ids_BT, use_cache=use, **asked) for use in (True, False))
        assert torch.equal(with_cache, without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["llama", "llama with biases, not tied", "qwen3"])
def test_saving_and_loading_keeps_every_bit(tmp_path, variant, dtype):
    model = stir(make_pair(variant, "adapt", dtype)[1])
    again = reloaded(model, tmp_path)
    tied = VARIANTS[variant].get("tie_word_embeddings", True)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_from_a_config_alone_it_starts_with_nothing_read_back():
    _, model = make_pair(mode="adapt")
    fresh = transformers.AutoModelForCausalLM.from_config(model.config)
    backs = [p for name, p in fresh.named_parameters() if ".back." in name]
    assert len(backs) == 3 * 7 + 1 and not any(p.any() for p in backs)
    assert 0.01 < fresh.model.layers[0].mlp.up_proj.weight.std() < 0.03
    assert torch.equal(fresh.model.norm.new.weight, torch.ones(6))


@pytest.mark.parametrize("config", [{"model_type": "olmo2"}, {"model_type": "mistral", "layer_types": ["a"]}, {}])
def test_another_architecture_is_refused(config):
    with pytest.raises(ValueError, match=r"scale widens llama, mistral, qwen2, qwen3; this model is of model_type="):
        scaled_config(config, "adapt", WIDER)
