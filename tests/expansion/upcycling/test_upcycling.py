"""Dense models as stock mixtures of experts: what they compute, what is new in them, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import BlockNames, Source, read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.architecture.shape import shape_of
from pipeline.models.directory import read_config
from pipeline.models.files.tensor_file import Stored
from pipeline.records.expansion import ExpansionMap, read_expansion
from pipeline.training.cost.flops import Trains, cost_of
from pipeline.training.methods.strategy import Full, NewBlocks, apply_strategy
from tests.expansion.upcycling.conftest import method_of

SCALED = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
# Weights of a size at which every field of the config is seen in the logits.
LOUD = {"initializer_range": 0.2}
DENSE = {
    "llama": {},
    "llama, its own numbers": {"rope_parameters": SCALED, "rms_norm_eps": 0.1, "tie_word_embeddings": False},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral, a window": {"model_type": "mistral", "sliding_window": 8},
}
KINDS = [("mixtral", {}), ("deepseek_moe", {}), ("deepseek_moe", {"mode": "faithful"})]
QWEN = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dense", DENSE)
def test_mixtral_keeps_the_function_up_to_rounding(make_model, upcycle, dense, dtype):
    source = make_model(dtype, **DENSE[dense])
    plan, target = upcycle(source, "mixtral")
    proof = verify_identity(source, target, in_fp32=True)
    assert plan.tolerance == 1e-6 and not plan.exact
    assert proof.max_abs_difference <= plan.tolerance and proof.generation_equal
    assert type(load(target)) is transformers.MixtralForCausalLM


@pytest.mark.parametrize("changes", [{"drop_ratio": 0.5, "noise": 0.5}, {}], ids=["changed", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dense", [*DENSE, "qwen2"])
def test_exact_is_its_source_to_the_bit(make_model, upcycle, dense, dtype, changes):
    source = make_model(dtype, **LOUD, **(QWEN if dense == "qwen2" else DENSE[dense]))
    plan, target = upcycle(source, "deepseek_moe", **changes)
    proof = verify_identity(source, target)
    assert plan.exact and proof.exact and proof.max_abs_difference == 0 and proof.dtype == dtype
    assert type(load(target)) is transformers.Qwen2MoeForCausalLM


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("numbers", [{}, {"num_shared": 0, "num_experts": 8, "top_k": 4}])
def test_virtual_groups_keep_the_function_up_to_rounding(make_model, upcycle, dtype, numbers):
    """Three routed shards: their factor of 3 is rounded where weights have 16 bits, and nothing is claimed."""
    source = make_model(dtype)
    plan, target = upcycle(source, "deepseek_moe", mode="virtual_groups", **numbers)
    found = verify_identity(source, target, in_fp32=True).max_abs_difference
    assert plan.tolerance == (None if dtype != "float32" and not numbers else 1e-6)
    assert found <= (plan.tolerance or 0.05)


@pytest.mark.parametrize(("option", "changes"), KINDS)
def test_generation_with_a_cache_is_that_without(make_model, upcycle, option, changes):
    _, target = upcycle(make_model(**LOUD), option, **changes)
    model, ids = load(target), torch.arange(3, 15)[None]
    with_cache, without = (model.generate(ids, max_new_tokens=16, use_cache=cache) for cache in (True, False))
    assert torch.equal(with_cache, without) and with_cache.shape[1] > 13


def test_faithful_moves_the_function_by_its_gates(make_model, upcycle):
    """The error is that of gates that do not sum to 1: none where the router is undecided, more as it decides."""
    source = make_model(**LOUD)
    found = []
    for deviation in (1e-9, 0.006, 0.5):
        plan, target = upcycle(
            source, "deepseek_moe", mode="faithful", num_experts=12, top_k=3, router_std=deviation, num_dense_blocks=0
        )
        assert plan.tolerance is None and not plan.exact
        found.append(verify_identity(source, target, in_fp32=True).max_abs_difference)
    assert found[0] < 1e-4 < found[1] < found[2]


@pytest.mark.parametrize("changes", [{"drop_ratio": 0.5}, {"noise": 0.01}])
def test_changed_experts_claim_nothing(make_model, upcycle, changes):
    plan, target = upcycle(make_model(**LOUD), "mixtral", **changes)
    assert plan.tolerance is None
    assert verify_identity(make_model(**LOUD), target, in_fp32=True).max_abs_difference > 1e-3


def test_dropped_units_are_one_set_drawn_like_what_they_replace(make_model, upcycle):
    source = load_file(make_model(**LOUD) / "model.safetensors")
    _, target = upcycle(make_model(**LOUD), "mixtral", drop_ratio=0.25, seed=3)
    made = load_file(target / "model.safetensors")
    sets = []
    for expert in range(8):
        name = f"model.layers.1.block_sparse_moe.experts.{expert}."
        rows = {}
        for short, rest in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            old, new = source[f"model.layers.1.mlp.{rest}_proj.weight"], made[f"{name}{short}.weight"]
            old, new = (old.T, new.T) if rest == "down" else (old, new)
            rows[rest] = frozenset(i for i in range(64) if not torch.equal(old[i], new[i]))
            drawn = torch.tensor(sorted(rows[rest]))
            assert new[drawn].std() == pytest.approx(old[drawn].std().item(), rel=0.15)
        assert len(rows["gate"]) == 16 and len(set(rows.values())) == 1
        sets.append(rows["gate"])
    assert len(set(sets)) == 8


def test_shards_cover_the_ffn(make_model, upcycle):
    """Block by block: gate, up and down of the shards, put together, are the dense matrices."""
    dense = load_file(make_model() / "model.safetensors")
    _, target = upcycle(make_model(), "deepseek_moe", mode="virtual_groups", num_shared=1)
    made = load_file(target / "model.safetensors")
    for rest, axis, factor in (("gate", 0, 1), ("up", 0, 1), ("down", 1, 3)):
        parts = [made[f"model.layers.2.mlp.experts.{e}.{rest}_proj.weight"] / factor for e in (3, 4, 5)]
        shared = made[f"model.layers.2.mlp.shared_expert.{rest}_proj.weight"] / (2 if axis else 1)
        torch.testing.assert_close(torch.cat([shared, *parts], axis), dense[f"model.layers.2.mlp.{rest}_proj.weight"])
    router = made["model.layers.2.mlp.gate.weight"].view(5, 3, 32)
    assert torch.equal(router, router[:, :1].expand(5, 3, 32)) and len({row[0, 0].item() for row in router}) == 5
    assert "model.layers.0.mlp.gate_proj.weight" in made and not any(".0.mlp.experts" in name for name in made)


@pytest.mark.parametrize("save", ["full", "delta"])
@pytest.mark.parametrize(("option", "changes"), KINDS)
def test_what_is_new_and_what_is_fixed(make_model, upcycle, option, changes, save):
    _, target = upcycle(make_model("bfloat16"), option, save, **changes)
    model, record = load(target), read_expansion(target)
    parameters = dict(model.named_parameters())
    new = {n for n in parameters if ".experts." in n or ".mlp.gate." in n or (changes and ".shared_expert." in n)}
    fixed = {n for n in parameters if "shared_expert_gate" in n or n.endswith("_proj.bias")}
    assert set(record.module_parameters) == new and set(record.fixed_parameters) == fixed
    assert bool(fixed) == (option == "deepseek_moe") and not any(parameters[name].any() for name in fixed)
    assert record.blocks == () and record.round == 1 and [one.method for one in record.history] == [option]
    for strategy, wanted in ((NewBlocks(), new), (Full(), parameters.keys() - fixed)):
        apply_strategy(strategy, model, record)
        assert {name for name, p in parameters.items() if p.requires_grad} == set(wanted)


def test_at_the_first_step_of_exact_only_the_routed_down_has_a_gradient(make_model, upcycle):
    _, target = upcycle(make_model(), "deepseek_moe")
    model = apply_strategy(NewBlocks(), load(target), read_expansion(target))
    ids = torch.randint(0, 300, (2, 32))
    model(input_ids=ids, labels=ids).loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {f"model.layers.{i}.mlp.experts.down_proj" for i in (1, 2, 3)}


@pytest.mark.parametrize("option", ["mixtral", "deepseek_moe"])
def test_rounds_before_and_after(make_model, upcycle, tmp_path, option):
    """A grown model is upcycled, and its experts grow: what a round made is known by the names of now."""

    def grow(source, target):
        found = read_source(source)
        return write_expansion(BlockExpansion(num_groups=2).plan(found), found, target)

    grow(make_model(), tmp_path / "grown")
    plan, sparse = upcycle(tmp_path / "grown", option)
    names = set(load_file(sparse / "model.safetensors"))
    first, second = plan.history
    assert set(first.new_parameters) <= names and any("experts.0." in name for name in first.new_parameters)
    assert [block.position for block in plan.blocks] == [2, 5] and second.method == option
    grow(sparse, tmp_path / "again")
    record = read_expansion(tmp_path / "again")
    parameters = dict(load(tmp_path / "again").named_parameters())
    assert set(record.module_parameters) | set(record.fixed_parameters) <= parameters.keys()
    assert not any(parameters[name].any() for name in record.fixed_parameters)
    assert verify_identity(sparse, tmp_path / "again", num_tokens=24).exact


def test_fields_that_only_one_family_reads(make_model, upcycle):
    """A window in a Llama's config.json never counted; what the families call alike is written out."""
    source = read_source(make_model())
    plan = method_of("mixtral").plan(dataclasses.replace(source, config={**source.config, "sliding_window": 4}))
    assert plan.config["sliding_window"] is None and plan.config["rope_parameters"]["rope_theta"] == 10000.0
    assert not {"attention_bias", "mlp_bias", "pretraining_tp"} & plan.config.keys()
    bare = {key: value for key, value in source.config.items() if key not in ("rms_norm_eps", "rope_parameters")}
    assert bare != source.config
    known = method_of("mixtral").plan(dataclasses.replace(source, config=bare)).config
    assert known["rms_norm_eps"] == 1e-6 and known["rope_parameters"]["rope_theta"] == 10000.0


MISTRAL_7B = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None,
}  # fmt: skip


def on_meta(config):
    """A source of this shape without weights."""
    from pipeline.expansion.architecture_cache import Architecture

    anatomy = Architecture({**config, "architectures": ["MistralForCausalLM"]})
    shapes = {name: tuple(p.shape) for name, p in anatomy.structure.model.state_dict().items()}
    tensors = {name: Stored(None, "BF16", shape, 0, 0, name) for name, shape in shapes.items()}
    blocks = BlockNames("model.layers.", config["num_hidden_layers"])
    return Source(None, tensors, config, ExpansionMap(), anatomy, blocks)


def test_mixtral_8x7b_on_the_meta_device():
    source = on_meta(MISTRAL_7B)
    plan = method_of("mixtral").plan(source)
    made = {name: torch.Size(r.shape or source.tensors[r.source].shape).numel() for name, r in plan.recipes.items()}
    assert sum(made.values()) == 46_702_792_704
    shape = shape_of(plan.config)
    assert shape.num_parameters == 46_702_792_704 and num_active(shape) == 12_879_925_248
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**plan.config))
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(parameters.values()) == 46_702_792_704
    assert sum(made[name] for name in plan.new_parameters) == sum(parameters[name] for name in plan.module_parameters)


def num_active(shape):
    """Parameters that a token meets: matrices with its experts, norms, and both tables."""
    used = sum(matrix.num_used for block in shape.blocks for matrix in block.matrices)
    return used + sum(block.vectors for block in shape.blocks) + shape.hidden * (1 + 2 * shape.vocab)


def test_deepseek_moe_16b_on_the_meta_device():
    """The published 16,375,728,128, and what the host has beside: a gate of the shared expert, and biases."""
    config = transformers.Qwen2MoeConfig(
        vocab_size=102400, hidden_size=2048, intermediate_size=10944, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=16, moe_intermediate_size=1408, shared_expert_intermediate_size=2816, num_experts=64,
        num_experts_per_tok=6, mlp_only_layers=[0],
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    gates, biases = 27 * 2048, 28 * 3 * 2048
    assert sum(p.numel() for p in model.parameters()) == 16_375_728_128 + gates + biases
    shape = shape_of(config.to_dict())
    assert shape.num_parameters == 16_375_728_128 + gates
    assert num_active(shape) == pytest.approx(2.83e9, rel=2e-3)
    assert cost_of(shape, Trains("full")).num_used == num_active(shape) - 2048 * (102400 + 57)


@pytest.mark.parametrize(
    ("option", "config", "message"),
    [
        ("mixtral", {"model_type": "gpt2"}, "Mixtral upcycling makes experts of the FFNs of llama, mistral; .*'gpt2'"),
        ("mixtral", {"model_type": "qwen2"}, "this model is of model_type='qwen2'"),
        ("mixtral", {"model_type": "mixtral", "num_local_experts": 8}, "this model is of model_type='mixtral'"),
        ("mixtral", {"attention_bias": True}, "has attention_bias=true, and Mixtral has no place"),
        ("mixtral", {"mlp_bias": True}, "has mlp_bias=true"),
        ("mixtral", {"model_type": "mistral", "layer_types": ["full_attention"] * 4}, "layer_types .*Ministral"),
        ("deepseek_moe", {"model_type": "gpt2"}, "makes experts of the FFNs of llama, mistral, qwen2;"),
        ("deepseek_moe", {"attention_bias": True}, "has attention_bias=true"),
        ("deepseek_moe", {"head_dim": 16}, "head_dim=16 is not hidden_size / num_attention_heads = 8"),
        ("deepseek_moe", {"intermediate_size": 66}, "granularity=4 does not divide the model's intermediate_size=66"),
    ],
)  # fmt: skip
def test_models_that_are_refused_before_any_work(option, config, message):
    known = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, **config}
    with pytest.raises(ValueError, match=message):
        method_of(option).check_models(lambda role, key: known if (role, key) == ("model", "config") else None)
    method_of(option).check_models(lambda role, key: None)


@pytest.mark.parametrize(
    ("option", "changes", "message"),
    [
        ("mixtral", {"top_k": 9}, "top_k=9 must be at least 1 and at most num_experts=8"),
        ("mixtral", {"top_k": 0}, "top_k=0"),
        ("mixtral", {"num_experts": 1, "top_k": 1}, "num_experts=1 must be a whole number of at least 2"),
        ("mixtral", {"router_std": 0.0}, "router_std=0.0 must be more than 0: .* all choices are ties"),
        ("mixtral", {"drop_ratio": 1.5}, "drop_ratio=1.5 must be at least 0 and at most 1"),
        ("mixtral", {"noise": -1}, "noise=-1 must be at least 0"),
        ("deepseek_moe", {"mode": "sparse"}, "expand.mode='sparse' is not known; use one of exact, virtual_groups"),
        ("deepseek_moe", {"top_k": 16}, "top_k=16"),
        ("deepseek_moe", {"num_shared": 4}, "num_shared=4 of granularity=4 shards"),
        ("deepseek_moe", {"num_dense_blocks": 4}, "num_dense_blocks=4 must be at least 0 and less than 4"),
        ("deepseek_moe", {"mode": "virtual_groups", "top_k": 4}, "top_k=4 must be a multiple of the 3 routed shards"),
    ],
)
def test_settings_that_are_refused_before_any_work(option, changes, message):
    with pytest.raises(ValueError, match=message):
        method_of(option, **changes).check(4)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["mixtral", "deepseek_moe"])
def test_stock_transformers_loads_it_in_a_new_process(make_model, upcycle, tmp_path, option):
    _, target = upcycle(make_model(), option)
    code = (
        "import sys, torch, transformers\n"
        "model, report = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not any(report[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), report\n"
        "assert not any(name.startswith('pipeline') for name in sys.modules)\n"
        "torch.save(model.eval()(input_ids=torch.arange(3, 19)[None]).logits.detach(), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(target), str(tmp_path / "logits.pt")], check=True, cwd=tmp_path)
    with torch.no_grad():
        wanted = load(make_model())(torch.arange(3, 19)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), wanted, atol=1e-6, rtol=0)
    assert read_config(target)["model_type"] in ("mixtral", "qwen2_moe")
