"""Upcycling through the stage: what is refused before work, what is foreseen, and what a proof up to rounding holds."""

import shutil

import pytest

from pipeline.engine import artifact
from pipeline.engine.run.forecast import Input, Request
from pipeline.models.directory import read_config
from stages import expand
from tests.stages.test_expand import METHODS, context

LLAMA = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def foreseen(method, **config):
    facts = {"config": {**LLAMA, **config}, "num_blocks": 4}
    params = {"method": {**METHODS[method]}, "save": "full"}
    return expand.forecast(Request(params, {"model": Input(None, lambda: facts)})).facts


@pytest.mark.parametrize("method", ["mixtral", "deepseek_moe"])
def test_what_will_come_out_is_foreseen(make_model, tmp_path, method):
    facts = foreseen(method)
    asked = context(base(make_model(), tmp_path), tmp_path, method)
    metrics = expand.run(asked)
    made = expand.facts(tmp_path / "out")
    assert facts["num_blocks"] == made["num_blocks"] == 4 and facts["shape"] == made["shape"]
    assert facts["model_type"] == made["model_type"] == facts["config"]["model_type"]
    # Two biases and a gate that do nothing are left out of shapes.
    assert facts["shape"].num_parameters == pytest.approx(metrics["num_parameters"], rel=0.01)
    written = read_config(tmp_path / "out/model")
    assert {key: written[key] for key in facts["config"]} == facts["config"]


def base(model, tmp_path):
    directory = tmp_path / "base"
    shutil.copytree(model, directory / "model")
    (directory / artifact.MANIFEST).write_text("{}")
    return directory


@pytest.mark.parametrize("method", ["mixtral", "deepseek_moe"])
def test_a_model_that_cannot_be_upcycled_is_refused_before_any_work(method):
    with pytest.raises(ValueError, match=r"upcycling makes experts of the FFNs of .*; this model is of .*'gpt2'"):
        foreseen(method, model_type="gpt2")
    with pytest.raises(ValueError, match="has attention_bias=true"):
        foreseen(method, attention_bias=True)


def test_a_deep_model_with_large_logits_may_differ_by_what_it_rounds_itself(make_model, tmp_path):
    loud = make_model(num_hidden_layers=16, hidden_size=64, intermediate_size=128, initializer_range=0.2)
    metrics = expand.run(context(base(loud, tmp_path), tmp_path, "mixtral"))
    assert 1e-6 < metrics["max_abs_difference"] < 1e-3


OTHERWISE = [{"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rms_norm_eps": 1e-5}]


@pytest.mark.parametrize("field", OTHERWISE, ids=lambda field: next(iter(field)))
def test_a_config_that_computes_otherwise_is_found_by_the_proof(make_model, tmp_path, monkeypatch, field):
    """Mixtral's own default of the base of RoPE, or of the norms' epsilon, in place of the Llama's."""
    from pipeline.expansion.upcycling.mixtral import MixtralUpcycling

    true = MixtralUpcycling.sparse_config
    monkeypatch.setattr(MixtralUpcycling, "sparse_config", lambda *asked: {**true(*asked), **field})
    with pytest.raises(ValueError, match=r"logits differ by up to .* in float32, mixtral claims at most 1e-06"):
        expand.run(context(base(make_model(), tmp_path), tmp_path, "mixtral"))
