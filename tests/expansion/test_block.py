"""Block expansion: the plan is what the paper says, the written model is its source bit for bit, and stays loadable."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pipeline.expansion.base import find_blocks, grow_config, residual_writers
from pipeline.expansion.block import BlockExpansion
from pipeline.expansion.layout import interleaved
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.directory import read_config, read_expansion
from pipeline.models.safetensors_io import read_index


def expand(source, target, num_groups=2, per_group=1, shard_bytes=5 * 10**9):
    plan = BlockExpansion(num_groups, per_group).plan(read_index(source), read_config(source), read_expansion(source))
    return write_expansion(plan, source, target, shard_bytes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("num_groups", "per_group"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_identity_is_bit_exact(make_model, tmp_path, dtype, num_groups, per_group):
    source = make_model(dtype)
    expand(source, tmp_path, num_groups, per_group)
    proof = verify_identity(source, tmp_path, num_tokens=24)
    assert proof.exact and proof.max_abs_difference == 0 and proof.dtype == dtype


@pytest.mark.parametrize(
    "config",
    [
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        {"model_type": "mistral"},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 8},
    ],
    ids=["biases", "mistral", "qwen2", "qwen3"],
)
def test_identity_of_the_llama_family(make_model, tmp_path, config):
    source = make_model("float32", **config)
    if config.get("mlp_bias"):  # a fresh model's biases are zero and would prove nothing
        source = shutil.copytree(source, tmp_path / "source")
        tensors = load_file(source / "model.safetensors")
        from safetensors.torch import save_file

        save_file(
            {n: torch.randn_like(t) if n.endswith("bias") else t for n, t in tensors.items()},
            source / "model.safetensors",
            {"format": "pt"},
        )
    expand(source, tmp_path / "grown")
    assert verify_identity(source, tmp_path / "grown", num_tokens=24).exact


def test_tensors_equal_the_authors_rule_without_a_cast(make_model, tmp_path):
    """Recomputed from its definition: copies, with down_proj and o_proj zero; all else as it was, in bf16."""
    source = make_model("bfloat16")
    expand(source, tmp_path)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    expected, position = {n: t for n, t in before.items() if ".layers." not in n}, 0
    for i in range(4):
        for copy in range(2 if (i + 1) % 2 == 0 else 1):
            for name, tensor in before.items():
                if f".layers.{i}." in name:
                    zero = copy and ("down_proj" in name or "o_proj" in name)
                    expected[name.replace(f".layers.{i}.", f".layers.{position}.")] = (
                        torch.zeros_like(tensor) if zero else tensor
                    )
            position += 1
    assert expected.keys() == after.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == after[name].dtype == torch.bfloat16 and torch.equal(tensor, after[name]), name


def test_new_parameters_are_the_nine_tensors_of_each_new_block(make_model, tmp_path):
    plan = expand(make_model(), tmp_path)
    rests = [
        "input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
        "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
    ]  # fmt: skip
    assert sorted(plan.new_parameters) == sorted(f"model.layers.{i}.{rest}.weight" for i in (2, 5) for rest in rests)
    assert read_expansion(tmp_path)["new_parameters"] == list(plan.new_parameters)


def test_map_records_origin_position_and_source_hash(make_model, tmp_path):
    blocks = expand(make_model(), tmp_path).blocks
    assert [(b.position, b.origin, b.group, b.round) for b in blocks] == [(2, 1, 0, 1), (5, 3, 1, 1)]
    assert all(len(b.source_hash) == 64 for b in blocks) and blocks[0].source_hash != blocks[1].source_hash


def test_a_second_round_keeps_the_first_apart(make_model, tmp_path):
    expand(make_model(), tmp_path / "one")  # blocks 0 1 N 2 3 N
    plan = expand(tmp_path / "one", tmp_path / "two", num_groups=3)  # groups of two
    assert verify_identity(tmp_path / "one", tmp_path / "two", num_tokens=16).exact
    assert [(b.round, b.position) for b in plan.blocks] == [(1, 3), (1, 7), (2, 2), (2, 5), (2, 8)]
    assert all(f".layers.{i}." in " ".join(plan.new_parameters) for i in (2, 5, 8))
    assert not any(f".layers.{i}." in " ".join(plan.new_parameters) for i in (3, 7))


def test_shards_are_numbered_indexed_and_loadable(make_model, tmp_path):
    source = make_model("float32")
    expand(source, tmp_path, shard_bytes=50_000)
    assert (tmp_path / "model.safetensors.index.json").exists() and not (tmp_path / "model.safetensors").exists()
    assert max(f.stat().st_size for f in tmp_path.glob("*.safetensors")) < 60_000
    assert verify_identity(source, tmp_path, num_tokens=16).exact


def test_stock_transformers_loads_it_and_the_tokenizer_came_along(make_model, tmp_path):
    expand(make_model(), tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.num_hidden_layers == 6
    assert tokenizer.decode(tokenizer("grüße").input_ids) == "grüße"


def test_verification_fails_closed_when_a_block_is_not_an_identity(make_model, tmp_path):
    source = make_model()
    expand(source, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = 1e-3
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    proof = verify_identity(source, tmp_path, num_tokens=24)
    assert not proof.exact and proof.max_abs_difference > 0


def test_only_the_writers_get_a_gradient_at_step_zero(make_model, tmp_path):
    """W^O and W3 first; every other tensor of a new block has exactly zero gradient, and starts one step later."""
    expand(make_model(), tmp_path)
    model = load(tmp_path)
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if ".layers.2." in name or ".layers.5." in name:
            writes = "o_proj" in name or "down_proj" in name
            assert bool(parameter.grad.abs().max() > 0) == writes, name


def test_lists_of_the_config_follow_the_blocks():
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "c"], "eos_token_id": [1, 2], "hidden_size": 4}
    grown = grow_config(config, interleaved(4, 2, 1), 4)
    assert grown["layer_types"] == ["a", "b", "b", "a", "c", "c"] and grown["num_hidden_layers"] == 6
    assert grown["eos_token_id"] == [1, 2]


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match="model_type='gpt2' are not known"):
        residual_writers("gpt2", ["attn.c_proj.weight"])
    with pytest.raises(ValueError, match=r"has no self_attn.o_proj"):
        residual_writers("llama", ["mlp.down_proj.weight"])


def test_blocks_are_found_beside_numbered_experts():
    names = [f"model.layers.{i}.mlp.experts.{e}.w.weight" for i in range(3) for e in range(3)]
    assert find_blocks(names, 3).prefix == "model.layers."
    with pytest.raises(ValueError, match="expected one numbered list of 5 blocks"):
        find_blocks(names, 5)


def test_expansion_file_is_plain_json(make_model, tmp_path):
    expand(make_model(), tmp_path)
    record = json.loads((tmp_path / "expansion.json").read_text())
    assert record["exact"] is True and record["method"] == "block"
    assert record["settings"] == {"num_groups": 2, "per_group": 1}
