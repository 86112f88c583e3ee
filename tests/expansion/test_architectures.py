"""The identity matrix: every architecture is expanded exactly, as stock transformers sees it, or refused by name."""

import json

import pytest
import torch
import transformers

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.structure import build
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from tests.expansion.architectures import EXACT, REFUSED

LAYOUTS = {
    "interleaved": {"num_groups": 2},
    "prefix": {"position": "prefix"},
    "suffix": {"position": "suffix"},
    "explicit": {"position": "explicit", "origin": "last"},
}
MATRIX = [(layout, per_group) for layout in LAYOUTS for per_group in (1, 2)]
QUICK = [("explicit", 2)]
# A count of dense blocks at the bottom cannot say that a copy of the bottom one stands above a block of experts.
CANNOT = {(name, layout, 2) for name in ("DeepSeek-V2", "DeepSeek-V3") for layout in ("interleaved", "prefix")}


def saved(config, directory):
    """A model of every parameter random, so that no zero bias or unit norm hides what should have been zeroed."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(directory)
    return directory


def outputs(directory):
    """Logits of twelve tokens, and twelve more generated greedily through the cache, by stock transformers."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        generated = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False
        )
    return logits, generated


@pytest.mark.parametrize("ways", [QUICK, pytest.param(MATRIX, marks=pytest.mark.slow)], ids=["quick", "matrix"])
@pytest.mark.parametrize("name", EXACT)
def test_expanded_exactly(name, ways, tmp_path):
    source = read_source(saved(EXACT[name], tmp_path / "source"))
    before = outputs(source.directory)
    for layout, per_group in ways:
        chosen = dict(LAYOUTS[layout], per_group=per_group)
        if layout == "explicit":
            chosen["positions"] = [[0, per_group], [2, 1]]
        target = tmp_path / f"{layout}-{per_group}"
        if (name, layout, per_group) in CANNOT:
            with pytest.raises(ValueError, match="would not be built like block"):
                BlockExpansion(**chosen).plan(source)
            continue
        plan = write_expansion(BlockExpansion(**chosen).plan(source), source, target)
        after = outputs(target)
        assert len(plan.blocks) > 0
        assert torch.equal(before[0], after[0]), (layout, per_group, (before[0] - after[0]).abs().max())
        assert torch.equal(before[1], after[1]), (layout, per_group)
        if (layout, per_group) == QUICK[0]:
            proof = verify_identity(source.directory, target, num_tokens=12)
            assert proof.exact and proof.cached_logits_equal, proof


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_was_found(name):
    config, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        anatomy = build(config)
        anatomy.writers(0)


def test_a_rule_over_indices_that_cannot_shift_is_refused(tmp_path):
    """DeepSeek's dense blocks stand at the bottom by a count: a new block of experts cannot stand below them."""
    source = read_source(saved(EXACT["DeepSeek-V3"], tmp_path))
    with pytest.raises(ValueError, match="would not be built like block"):
        BlockExpansion(position="explicit", positions=[[-1, 2]]).plan(source)


def test_config_follows_for_other_engines_too(tmp_path):
    """The grown config.json states the depth under the family's own name, and no list keeps its old length."""
    plan = BlockExpansion(num_groups=2).plan(read_source(saved(EXACT["GPT-2"], tmp_path / "gpt2")))
    assert plan.config["n_layer"] == 6
    plan = BlockExpansion(num_groups=2).plan(read_source(saved(EXACT["Qwen2"], tmp_path / "qwen2")))
    assert plan.config["num_hidden_layers"] == 6 and plan.config["max_window_layers"] == 3
    assert json.dumps(plan.config["layer_types"]).count("full") == 3
    plan = BlockExpansion(num_groups=2).plan(read_source(saved(EXACT["Qwen2-MoE"], tmp_path / "moe")))
    assert plan.config["mlp_only_layers"] == [0, 1, 2, 3] and plan.config["decoder_sparse_step"] == 1
