"""The soft mixture: its start, its equations recomputed, its gradients, and its place among the Auto classes."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import load_file, save_file

from pipeline.models.architecture import soft_moe
from pipeline.models.architecture.soft_moe import FAMILIES, SoftMixture, widened_config
from tests.models.architecture.ways import VARIANTS, random_base, run_both_ways

KEPT = 1 / (1 + math.exp(-1))  # softmax(1, 0)[0]


def make_pair(variant="llama", mode="exact", dtype=torch.float32, **more):
    """A random base model with non-zero biases, and its soft mixture with the base's weights."""
    base = random_base(variant, dtype, **more)
    mixed_config = transformers.AutoConfig.for_model(**widened_config(base.config.to_dict(), mode))
    mixed = transformers.AutoModelForCausalLM.from_config(mixed_config, dtype=dtype).eval()
    missing, unexpected = mixed.load_state_dict(base.state_dict(), strict=False)
    assert not unexpected and {name.rpartition("mlp.")[2] for name in missing} == {"second_down_proj.weight", "mixing"}
    return base, mixed


def stir(model):
    """Trained-looking values in what the mixture added."""
    with torch.no_grad():
        for block in model.base_model.layers:
            block.mlp.second_down_proj.weight.normal_(std=0.1)
            block.mlp.mixing.normal_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_exact_begins_as_its_base_bit_for_bit(variant, dtype):
    base, mixed = make_pair(variant, "exact", dtype)
    assert all(torch.equal(a, b) for a, b in zip(run_both_ways(base), run_both_ways(mixed), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_faithful_begins_with_each_ffn_scaled(variant):
    """softmax(1, 0)[0] = sigmoid(1) = 0.731 times what the base's FFN makes of the same input."""
    base, mixed = make_pair(variant, "faithful", torch.float64)
    seen = []
    for block in mixed.model.layers:
        block.mlp.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    logits = run_both_ways(mixed)[0]
    for block, (x_BTD, out_BTD) in zip(base.model.layers, seen, strict=False):
        torch.testing.assert_close(out_BTD, KEPT * block.mlp(x_BTD), rtol=1e-14, atol=1e-14)
    assert round(KEPT, 3) == 0.731 and not torch.allclose(logits, run_both_ways(base)[0])


@pytest.mark.parametrize(("mode", "over"), [("faithful", 1.0), ("exact", KEPT)])
def test_a_trained_mixture_is_its_equation(mode, over):
    _, mixed = make_pair("llama with biases, not tied", mode, torch.float64)
    stir(mixed)
    ffn = mixed.model.layers[1].mlp
    x_TD = torch.randn(7, 32, dtype=torch.float64)
    a1, a2 = ffn.mixing.tolist()
    s1 = math.exp(a1) / (math.exp(a1) + math.exp(a2))
    gate_TF = x_TD @ ffn.gate_proj.weight.T + ffn.gate_proj.bias
    h_TF = gate_TF / (1 + torch.exp(-gate_TF)) * (x_TD @ ffn.up_proj.weight.T + ffn.up_proj.bias)
    first_TD = h_TF @ ffn.down_proj.weight.T + ffn.down_proj.bias
    expected_TD = (s1 * first_TD + (1 - s1) * (h_TF @ ffn.second_down_proj.weight.T)) / over
    torch.testing.assert_close(ffn(x_TD), expected_TD, rtol=1e-12, atol=1e-12)


def gradients(mode, stirred):
    torch.manual_seed(3)
    _, model = make_pair("llama", mode, torch.float64)
    if stirred:
        stir(model)
    ffn = model.model.layers[0].mlp
    x_TD, upstream_TD = torch.randn(2, 5, 32, dtype=torch.float64)
    ffn(x_TD).backward(upstream_TD)
    return ffn.second_down_proj.weight.grad, ffn.mixing.grad


@pytest.mark.parametrize("stirred", [False, True])
def test_both_modes_learn_alike(stirred):
    """The gradients of exact are those of faithful over 0.731; all are non-zero from the first step on."""
    for faithful, exact in zip(gradients("faithful", stirred), gradients("exact", stirred), strict=True):
        assert faithful.abs().max() > 0
        torch.testing.assert_close(exact, faithful / KEPT, rtol=1e-6, atol=0)
    scalars = gradients("exact", stirred)[1]
    torch.testing.assert_close(scalars[0], -scalars[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["llama", "llama with biases, not tied", "qwen3"])
def test_saving_and_loading_keeps_every_bit(tmp_path, variant, dtype):
    _, model = make_pair(variant, "exact", dtype)
    stir(model)
    model.save_pretrained(tmp_path)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and type(again) is type(model) and again.dtype == dtype
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(a, b) for a, b in zip(run_both_ways(model), run_both_ways(again), strict=True))
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied == ("lm_head.weight" not in load_file(tmp_path / "model.safetensors")) == ("biases" not in variant)


def test_the_scalars_stay_fp32_in_a_bf16_model(tmp_path):
    _, model = make_pair(dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.mixing[0] = 1.0001  # between two bf16 numbers
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mixing = loaded.model.layers[0].mlp.mixing
    assert mixing.dtype == torch.float32 and torch.equal(mixing, model.model.layers[0].mlp.mixing)
    assert loaded.model.layers[0].mlp.second_down_proj.weight.dtype == torch.bfloat16


def test_a_base_checkpoint_fills_up_with_the_start(tmp_path):
    base, mixed = make_pair()
    base.save_pretrained(tmp_path)
    filled = type(mixed).from_pretrained(tmp_path, config=mixed.config).eval()
    for block in filled.model.layers:
        assert not block.mlp.second_down_proj.weight.any() and block.mlp.mixing.tolist() == [1.0, 0.0]
    assert torch.equal(run_both_ways(filled)[0], run_both_ways(base)[0])


def test_gradient_checkpointing_changes_no_gradient():
    _, model = make_pair(mode="faithful")
    stir(model)
    model.train()
    ids_BT = torch.randint(0, 97, (2, 8))
    found = []
    for turn_on in (False, True):
        model.zero_grad()
        if turn_on:
            model.gradient_checkpointing_enable()
        model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_decoder_alone_is_known_too():
    _, mixed = make_pair("qwen2")
    decoder = transformers.AutoModel.from_config(mixed.config)
    assert type(decoder) is type(mixed).decoder_class is type(mixed.model)
    assert all(isinstance(block.mlp, SoftMixture) for block in decoder.layers)


LOADING = """
import os, sys, torch, transformers
from safetensors.torch import load_file

def by_the_auto_classes(path):
    import pipeline.models.architecture.soft_moe
    return transformers.AutoModelForCausalLM.from_pretrained(path)

def by_our_loader(path):
    from pipeline.models import load
    return load(path)

def show(model):
    ids = torch.randint(0, 97, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    print(type(model).__name__, torch.equal(logits, load_file(sys.argv[1] + "/expected")["logits"]), flush=True)

for way in (by_the_auto_classes, by_our_loader):
    if os.fork() == 0:
        show(way(sys.argv[1]))
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_it_loads_in_a_new_process(tmp_path):
    """Each way in a fork of a process that has imported transformers and nothing of ours."""
    _, model = make_pair("mistral with a window")
    stir(model)
    model.save_pretrained(tmp_path)
    save_file({"logits": run_both_ways(model)[0]}, tmp_path / "expected")
    done = subprocess.run([sys.executable, "-c", LOADING, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["SoftMoeMistralForCausalLM", "True"] * 2, done.stderr


def test_llama2_7b_gains_what_the_definition_gives():
    """32 blocks of a 4096 x 11008 matrix and two scalars."""
    shape = transformers.LlamaConfig(vocab_size=32000).to_dict()  # the defaults are LLaMA-7B's
    config = transformers.AutoConfig.for_model(**widened_config(shape, "faithful"))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    added = [p.numel() for name, p in model.named_parameters() if "second_down_proj" in name or "mixing" in name]
    assert sum(added) == 32 * (4096 * 11008 + 2) == 1_442_840_640
    assert sum(p.numel() for p in model.parameters()) - sum(added) == 6_738_415_616


def test_the_config_keeps_the_bases_fields():
    base = {"model_type": "qwen2", "hidden_size": 64, "rope_theta": 5e5, "architectures": ["X"], "auto_map": {"A": "b"}}
    assert widened_config(base, "faithful") == {
        "model_type": "soft_moe_qwen2", "hidden_size": 64, "rope_theta": 5e5, "base_model_type": "qwen2",
        "mode": "faithful", "architectures": ["SoftMoeQwen2ForCausalLM"],
    }  # fmt: skip


def test_a_config_of_another_mode_or_base_is_refused():
    for wrong in ({"mode": "soft"}, {"base_model_type": "qwen2"}):
        with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(wrong))):
            soft_moe.SoftMoeLlamaConfig(**wrong)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"model_type": "soft_moe_llama"}, "model_type='soft_moe_llama'"),
        ({"model_type": "mistral", "layer_types": ["full_attention"]}, "Ministral"),
        ({}, "model_type=None"),
    ],
)
def test_another_architecture_is_refused_with_those_that_fit(config, found):
    with pytest.raises(ValueError, match=found) as error:
        widened_config(config, "exact")
    assert all(family in str(error.value) for family in FAMILIES)
