"""Block expansion: the plan is what the paper says, the written model is its source bit for bit, and stays loadable."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import find_blocks, read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.files.safetensors_io import read_index
from pipeline.records.expansion import read_expansion
from pipeline.reporting.stack import read_stack
from pipeline.training.methods.strategy import NewBlocks


def expand(directory, target, num_groups=2, per_group=1, shard_bytes=5 * 10**9, **settings):
    source = read_source(directory)
    return write_expansion(BlockExpansion(num_groups, per_group, **settings).plan(source), source, target, shard_bytes)


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
        save_file(
            {n: torch.randn_like(t) if n.endswith("bias") else t for n, t in tensors.items()},
            source / "model.safetensors",
            {"format": "pt"},
        )
    expand(source, tmp_path / "grown")
    assert verify_identity(source, tmp_path / "grown", num_tokens=24).exact


def test_tensors_equal_the_authors_rule_without_a_cast(make_model, tmp_path):
    """N=8, P=1 on 32 blocks, from the rule's definition: split = L / (L' - L); after block i with (i + 1) % split == 0
    comes a copy of it with down_proj and o_proj zero. All else is as it was, in bf16."""
    source = make_model("bfloat16", num_hidden_layers=32)
    expand(source, tmp_path, num_groups=8)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    expected, position, split = {n: t for n, t in before.items() if ".layers." not in n}, 0, 32 // (40 - 32)
    for i in range(32):
        for copy in range(2 if (i + 1) % split == 0 else 1):
            for name, tensor in before.items():
                if f".layers.{i}." in name:
                    zero = copy and ("down_proj" in name or "o_proj" in name)
                    expected[name.replace(f".layers.{i}.", f".layers.{position}.")] = (
                        torch.zeros_like(tensor) if zero else tensor
                    )
            position += 1
    assert position == 40 and expected.keys() == after.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == after[name].dtype == torch.bfloat16 and torch.equal(tensor, after[name]), name


def test_new_parameters_are_the_nine_tensors_of_each_new_block(make_model, tmp_path):
    plan = expand(make_model(), tmp_path)
    rests = [
        "input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
        "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
    ]  # fmt: skip
    assert sorted(plan.new_parameters) == sorted(f"model.layers.{i}.{rest}.weight" for i in (2, 5) for rest in rests)
    assert read_expansion(tmp_path).new_parameters == plan.new_parameters


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
    (first,) = read_expansion(tmp_path / "two").rounds
    assert first.round == 1 and first.settings["num_groups"] == 2
    assert {name.split(".")[2] for name in first.new_parameters} == {"3", "7"} and len(first.new_parameters) == 18


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
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    proof = verify_identity(source, tmp_path, num_tokens=24)
    assert not proof.exact and proof.max_abs_difference > 0


def test_without_a_known_cache_it_is_verified_without_and_says_so(make_model, tmp_path, monkeypatch):
    source = make_model()
    expand(source, tmp_path)
    monkeypatch.setattr("pipeline.expansion.verify._CACHES", ("another",))
    with pytest.warns(UserWarning, match="gives no cache that is known here; compared without one"):
        proof = verify_identity(source, tmp_path, num_tokens=16)
    assert proof.exact and proof.cached_logits_equal is None and proof.record()["cached_logits_equal"] is None


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


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({"num_groups": 3, "strict": False}, [2, 4, 6]),
        ({"num_groups": 2, "position": "prefix"}, [0, 1]),
        ({"num_groups": 2, "position": "suffix"}, [4, 5]),
        ({"position": "explicit", "positions": [[0, 1], [2, 2]], "origin": "last"}, [1, 4, 5]),
    ],
    ids=["uneven", "prefix", "suffix", "explicit"],
)
def test_layouts_are_exact_and_recorded(make_model, tmp_path, settings, positions):
    source = make_model()
    plan = expand(source, tmp_path, **settings)
    assert [block.position for block in plan.blocks] == positions
    assert verify_identity(source, tmp_path, num_tokens=16).exact


@pytest.mark.parametrize(
    ("num_blocks", "num_groups", "per_group"),
    [(32, 8, 1), (32, 8, 2), (36, 9, 1), (64, 16, 1), (80, 16, 1), (33, 8, 1), (30, 7, 2)],
)
def test_trainable_set_by_exact_name(make_model, tmp_path, num_blocks, num_groups, per_group):
    """The names come from the rule alone: P blocks end each group, at the group's end plus P for each group below."""
    source = make_model(num_hidden_layers=num_blocks, hidden_size=8, intermediate_size=8, head_dim=2)
    expand(source, tmp_path, num_groups, per_group, strict=False)
    ends = [round_up(num_blocks, num_groups, g + 1) + g * per_group for g in range(num_groups)]
    new = [end + p for end in ends for p in range(per_group)]
    rests = [
        "input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
        "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
    ]  # fmt: skip
    model = NewBlocks().apply(load(tmp_path), read_expansion(tmp_path).new_parameters)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"model.layers.{i}.{rest}.weight" for i in new for rest in rests}


def round_up(num_blocks, num_groups, groups):
    """How many old blocks the first groups hold, the longer groups first."""
    size, longer = divmod(num_blocks, num_groups)
    return groups * size + min(groups, longer)


BESIDE_WEIGHTS = {
    "llama": ({}, {"model.layers.{}.self_attn.rotary_emb.inv_freq": torch.rand(4)}),
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 64, "n_positions": 256},
        {"transformer.h.{}.attn.bias": torch.ones(1, 1, 256, 256).tril()},
    ),
    "gpt_neox": (
        {"model_type": "gpt_neox"},
        {
            "gpt_neox.layers.{}.attention.bias": torch.ones(1, 1, 256, 256, dtype=torch.bool).tril(),
            "gpt_neox.layers.{}.attention.masked_bias": torch.tensor(-1e4),
        },
    ),
}


@pytest.mark.parametrize("init", ["zero_writers", "random", "average"])
@pytest.mark.parametrize("family", BESIDE_WEIGHTS)
def test_what_older_checkpoints_store_beside_the_weights_is_copied_and_no_parameter(make_model, tmp_path, family, init):
    config, beside = BESIDE_WEIGHTS[family]
    plain = make_model(**config)
    source = shutil.copytree(plain, tmp_path / "old")
    tensors = load_file(source / "model.safetensors")
    stored = {name.format(i): tensor.clone() for i in range(4) for name, tensor in beside.items()}
    save_file(tensors | stored, source / "model.safetensors", {"format": "pt"})
    without, plan = expand(plain, tmp_path / "without", init=init), expand(source, tmp_path / "new", init=init)
    assert plan.new_parameters == without.new_parameters and plan.module_parameters == without.module_parameters
    written = load_file(tmp_path / "new" / "model.safetensors")
    for name, tensor in beside.items():
        assert all(torch.equal(written[name.format(i)], tensor) for i in range(6))
    model = NewBlocks().apply(load(tmp_path / "new"), read_expansion(tmp_path / "new").module_parameters)
    assert sum(p.requires_grad for p in model.parameters()) == len(plan.module_parameters)
    stacks = [read_stack(tmp_path / name) for name in ("without", "new")]
    assert stacks[0].num_parameters == stacks[1].num_parameters == model.num_parameters()
    assert stacks[0].num_new == stacks[1].num_new
    assert len(plan.buffers) == 6 * len(beside) and not without.buffers
    if init == "zero_writers":
        assert verify_identity(source, tmp_path / "new", num_tokens=16).exact


def logits(directory):
    with torch.no_grad():
        return load(directory)(input_ids=torch.arange(3, 19)[None]).logits


def test_zeroed_norms_are_exact_and_stall_the_ffn(make_model, tmp_path):
    """Shen et al.: the output is unchanged, the attention's norm learns, and of the FFN nothing ever does."""
    source = make_model()
    plan = expand(source, tmp_path, init="zero_norms")
    assert plan.exact and verify_identity(source, tmp_path, num_tokens=16).exact
    model = load(tmp_path)
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    moved = {n for n, p in model.model.layers[2].named_parameters() if bool(p.grad.abs().max() > 0)}
    assert moved == {"input_layernorm.weight"}


def test_zeroed_norms_of_gemma_are_minus_one(make_model, tmp_path):
    """Gemma multiplies by 1 + the weight: nothing is -1 there."""
    source = make_model(model_type="gemma", head_dim=8)
    expand(source, tmp_path, init="zero_norms")
    assert verify_identity(source, tmp_path, num_tokens=16).exact
    tensors = load_file(tmp_path / "model.safetensors")
    assert (tensors["model.layers.2.input_layernorm.weight"] == -1).all()


def test_zeroed_norms_are_refused_where_a_bias_stands_behind_them(make_model, tmp_path):
    with pytest.raises(ValueError, match="not an identity with its norms"):
        expand(make_model(model_type="qwen2"), tmp_path, init="zero_norms")


@pytest.mark.parametrize("init", ["copy", "random", "average"])
def test_other_initialisations_claim_nothing_and_change_the_output(make_model, tmp_path, init):
    source = make_model()
    plan = expand(source, tmp_path, init=init)
    assert not plan.exact and not torch.equal(logits(source), logits(tmp_path))


def test_copies_random_and_averaged_blocks_hold_what_they_say(make_model, tmp_path):
    source = make_model()
    before = load_file(source / "model.safetensors")
    made = {}
    for init in ("copy", "random", "average"):
        expand(source, tmp_path / init, init=init)
        made[init] = load_file(tmp_path / init / "model.safetensors")
    name = "model.layers.{}.mlp.down_proj.weight"
    assert torch.equal(made["copy"][name.format(2)], before[name.format(1)])
    assert torch.equal(made["average"][name.format(2)], (before[name.format(1)] + before[name.format(2)]) / 2)
    assert torch.equal(made["average"][name.format(5)], before[name.format(3)])  # nothing stands above it
    drawn = made["random"][name.format(2)]
    assert abs(drawn.std().item() - 0.02) < 0.002 and abs(drawn.mean().item()) < 0.002
    expand(source, tmp_path / "other", init="random", seed=1)
    assert not torch.equal(load_file(tmp_path / "other" / "model.safetensors")[name.format(2)], drawn)


def test_blocks_are_found_beside_numbered_experts():
    names = [f"model.layers.{i}.mlp.experts.{e}.w.weight" for i in range(3) for e in range(3)]
    assert find_blocks(names, 3).prefix == "model.layers."
    with pytest.raises(ValueError, match="expected one numbered list of 5 blocks"):
        find_blocks(names, 5)


def test_expansion_file_is_plain_json(make_model, tmp_path):
    expand(make_model(), tmp_path)
    record = json.loads((tmp_path / "expansion.json").read_text())
    assert record["exact"] is True and record["method"] == "block"
    assert record["settings"]["num_groups"] == 2 and record["settings"]["init"] == "zero_writers"


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8"])
def test_weights_in_a_quantised_type_are_refused(make_model, tmp_path, dtype):
    source = shutil.copytree(make_model(), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(getattr(torch, dtype))
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    stored = read_index(source)[name].dtype
    with pytest.raises(
        ValueError, match=rf"is quantised: {name} is stored as {stored}\. .* dequantise the model first"
    ):
        expand(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("section", [None, "text_config"])
def test_a_config_that_says_quantised_is_refused(make_model, tmp_path, section):
    source = shutil.copytree(make_model(), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    said = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config |= {section: said} if section else said
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"quantization_config with quant_method='gptq'\. .* dequantise the model first"
    ):
        read_source(source)
