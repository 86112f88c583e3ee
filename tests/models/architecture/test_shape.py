"""Shapes read off a config: as many parameters as the model has, and the published counts of the models in conf/."""

from pathlib import Path

import pytest
import torch
import transformers
import yaml

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models.architecture.shape import read_shape, shape_of
from tests.expansion.architectures import EXACT

ROOT = Path(__file__).parents[3]

PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "mistral_7b": 7_241_732_096,
    "qwen3_0_6b": 596_049_920,
    "smollm2_135m": 134_515_008,
}
KNOWN = [name for name, config in EXACT.items() if shape_of({**config, "num_key_value_heads": 2})]


@pytest.mark.parametrize("option", PUBLISHED)
def test_stated_shapes_give_the_published_counts(option):
    model = yaml.safe_load((ROOT / "conf" / "model" / f"{option}.yaml").read_text())
    shape = shape_of({"num_hidden_layers": model["num_blocks"], **model["shape"]})
    # Qwen3 has two further norms in a block, 256 parameters each.
    assert shape.num_parameters == pytest.approx(PUBLISHED[option], rel=2e-5)


def test_every_model_to_be_fetched_states_its_shape():
    for file in (ROOT / "conf" / "model").glob("*.yaml"):
        model = yaml.safe_load(file.read_text())
        is_named = "???" not in model["source"].values()
        assert ("shape" in model) == (is_named and model["source"]["kind"] in ("hub", "package")), file


@pytest.mark.parametrize("name", KNOWN)
def test_matrices_are_those_of_the_model(name):
    config = transformers.AutoConfig.for_model(**EXACT[name])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = shape_of(config.to_dict())
    matrices = sum(matrix.num_stored for block in shape.blocks for matrix in block.matrices)
    tables = model.get_input_embeddings().weight.numel()
    head = model.get_output_embeddings().weight.numel()
    assert matrices + tables + (0 if shape.tied else head) == sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert len(shape.blocks) == 4 and shape.hidden == 32 and shape.vocab == 64


def test_many_families_are_known():
    assert {"Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Gemma 2", "Phi-3", "OLMoE", "StarCoder2"} <= set(KNOWN)
    assert not {"GPT-2", "Mamba", "DeepSeek-V3", "Qwen3-Next", "Llama 4"} & set(KNOWN)


def test_the_shape_of_an_expanded_model(make_model, tmp_path):
    source = read_source(make_model())
    expansion = BlockExpansion(2, 1)
    write_expansion(expansion.plan(source), source, tmp_path / "grown")
    stack = [(slot.source, slot.new) for slot in expansion.slots(4)]
    assert read_shape(tmp_path / "grown") == read_shape(make_model()).grown(stack)
    assert [block.new for block in read_shape(tmp_path / "grown").blocks] == [False, False, True] * 2


def test_what_is_not_known_has_no_shape():
    assert shape_of({"model_type": "mamba", "hidden_size": 32}) is None
    assert shape_of({"model_type": "llama", "hidden_size": 32}) is None
    counted = {key: value for key, value in EXACT["Qwen3-MoE"].items() if "experts" not in key}
    assert shape_of(counted) is None


def test_dense_blocks_among_those_with_experts():
    """Qwen's are listed, or stand between every so many; a model of any depth has its own."""
    for changes, dense in (({}, [1]), ({"mlp_only_layers": [], "decoder_sparse_step": 2}, [0, 2])):
        shape = shape_of({**EXACT["Qwen3-MoE"], **changes})
        assert [i for i, block in enumerate(shape.blocks) if all(m.used == m.stored for m in block.matrices)] == dense
