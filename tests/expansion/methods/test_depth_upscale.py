"""SOLAR's depth up-scaling: the paper's map and count, copies and nothing else, and depths that cannot be scaled so."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pipeline.expansion.methods.depth_upscale import DepthUpscale
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models.architecture.shape import shape_of
from pipeline.records.expansion import read_expansion

MISTRAL_7B = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip


def grow(source, target, num_dropped):
    found = read_source(source)
    return write_expansion(DepthUpscale(num_dropped).plan(found), found, target)


@pytest.mark.parametrize("num_dropped", [8, None])
def test_the_papers_map_is_two_overlapping_copies(num_dropped):
    slots = DepthUpscale(num_dropped).slots(32)
    assert [slot.source for slot in slots] == [*range(24), *range(8, 32)]
    assert [i for i, slot in enumerate(slots) if slot.new] == list(range(24, 40))


@pytest.mark.parametrize(("num_blocks", "num_dropped"), [(4, 1), (5, 2), (30, 8), (7, 0), (1, 0)])
def test_any_depth_and_overlap(num_blocks, num_dropped):
    sources = [slot.source for slot in DepthUpscale(num_dropped).slots(num_blocks)]
    assert sources == [*range(num_blocks - num_dropped), *range(num_dropped, num_blocks)]


def test_the_papers_number_of_parameters_on_the_meta_device():
    from transformers import AutoConfig, AutoModelForCausalLM

    stack = DepthUpscale(8).slots(32)
    with torch.device("meta"):
        config = AutoConfig.for_model(**{**MISTRAL_7B, "num_hidden_layers": len(stack)})
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == 10_731_524_096
    # As the forecast of a run tells it, of the norms of which it counts two a block and the last.
    assert shape_of(MISTRAL_7B).grown([(slot.source, slot.new) for slot in stack]).num_parameters == 10_731_524_096


def test_the_plan_of_the_papers_model_needs_no_weights(make_model, tmp_path):
    """A Mistral of 32 narrow blocks: the plan names each tensor of 48 blocks, and the one that it is copied from."""
    narrow = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 2, "num_attention_heads": 4}
    narrow |= {"num_key_value_heads": 2, "vocab_size": 300}
    source = read_source(make_model(**{**MISTRAL_7B, **narrow}))
    plan = DepthUpscale(8).plan(source)
    assert plan.config["num_hidden_layers"] == 48 and not plan.exact and plan.method == "depth_upscale"
    for position, origin in enumerate([*range(24), *range(8, 32)]):
        recipe = plan.recipes[f"model.layers.{position}.mlp.up_proj.weight"]
        assert (recipe.kind, recipe.source) == ("copy", f"model.layers.{origin}.mlp.up_proj.weight")
    assert {int(name.split(".")[2]) for name in plan.new_parameters} == set(range(24, 40))
    assert [(block.position, block.origin) for block in plan.blocks] == [(24 + i, 8 + i) for i in range(16)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_written_and_loads_in_stock_transformers_in_a_new_process(make_model, tmp_path, dtype):
    source = make_model(dtype)
    grow(source, tmp_path, None)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    for position, origin in enumerate([0, 1, 2, 1, 2, 3]):
        for name in (name for name in before if f".layers.{origin}." in name):
            assert torch.equal(after[name.replace(f".layers.{origin}.", f".layers.{position}.")], before[name])
    proof = verify_identity(source, tmp_path, num_tokens=16)
    assert not proof.exact and proof.max_abs_difference > 0
    record = read_expansion(tmp_path)
    assert record.settings == {"num_dropped": None} and not record.exact and record.last_positions == {3, 4}
    code = (
        "import sys, transformers; m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "assert not any(name.split('.')[0] == 'pipeline' for name in sys.modules); print(len(m.model.layers))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "6"


@pytest.mark.parametrize(("num_blocks", "num_dropped"), [(32, 16), (32, 17), (32, 33), (32, -1), (2, 1), (5, 3)])
def test_depths_without_an_overlap_are_refused(num_blocks, num_dropped):
    message = rf"num_dropped={num_dropped} of the model's {num_blocks} blocks leaves .* a model grows with 0 to"
    with pytest.raises(ValueError, match=message):
        DepthUpscale(num_dropped).check(num_blocks)
