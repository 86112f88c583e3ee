import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.evaluation.base import content_hash, score
from pipeline.evaluation.items import read_items
from pipeline.models.tiny import save_random
from stages import evaluate

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}
BENCHMARK = {
    "_target_": "pipeline.evaluation.perplexity.HeldOutText",
    "documents": None,
    "sources": None,
    "window": 32,
    "max_document_tokens": None,
    "max_items": None,
    "max_tokens": None,
}


@pytest.fixture
def context(tmp_path):
    save_random(tmp_path / "artifact" / "model", CONFIG, "bfloat16", seed=0)
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    data = tmp_path / "data"
    data.mkdir()
    lines = (json.dumps({"id": str(i), "text": f"document number {i} grows"}) + "\n" for i in range(3))
    (data / "own.heldout.jsonl").write_text("".join(lines))
    (data / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"own": {}}}))
    seen = []

    def make(name, is_main=True, **changes):
        directory = tmp_path / name
        directory.mkdir()
        return SimpleNamespace(
            directory=directory,
            params={"benchmark": {**BENCHMARK, **changes}},
            inputs={"model": tmp_path / "artifact", "data": data},
            locate=lambda source: tmp_path,
            listing=lambda source: [],
            progress=lambda **fields: seen.append(fields),
            is_main=is_main,
            launch={},
        )

    evaluate._model.cache_clear()
    return SimpleNamespace(make=make, seen=seen)


def test_items_and_metrics_are_written(context):
    first = context.make("first")
    metrics = evaluate.run(first)
    assert {file.name for file in first.directory.iterdir()} == {"items.parquet"}
    outcome = read_items(first.directory)
    assert [item.prompt for item in outcome.items] == sorted(
        (f"document number {i} grows" for i in range(3)), key=content_hash
    )
    assert metrics == {**score(outcome.items)._asdict(), "metric": "bits_per_byte"}
    assert metrics["n"] == 3
    assert context.seen[-1]["step"] == context.seen[-1]["total"] > 0


def test_one_worker_loads_a_model_once_and_in_fp32(context, monkeypatch):
    import torch

    import pipeline.models

    loads, load = [], pipeline.models.load
    monkeypatch.setattr(pipeline.models, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    metrics = [evaluate.run(context.make(name)) for name in ("first", "second")]
    assert metrics[0] == metrics[1]
    assert len(loads) == 1
    model, _ = evaluate._model(loads[0][0])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_only_rank_zero_scores(context):
    other = context.make("other", is_main=False)
    assert evaluate.run(other) == {}
    assert not list(other.directory.iterdir())


def test_bad_settings_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        evaluate.check({"benchmark": {**BENCHMARK, "window": 0}}, {})
    with pytest.raises(ValueError, match="unexpected keyword argument 'windwo'"):
        evaluate.check({"benchmark": {**BENCHMARK, "windwo": 3}}, {})
    with pytest.raises(ValueError, match=r"no\.such\.Thing"):
        evaluate.check({"benchmark": {"_target_": "no.such.Thing"}}, {})
    with pytest.raises(ValueError, match="window=32 is longer than the model's 16 positions"):
        evaluate.check({"benchmark": BENCHMARK}, {"max_position_embeddings": 16})
    evaluate.check({"benchmark": BENCHMARK}, {"max_position_embeddings": 32})


def test_what_is_wrong_is_found_before_the_model_is_loaded(context, monkeypatch):
    def refuse(self, model, inputs):
        assert (model / "config.json").is_file() and inputs.endpoint == {"url": "u"}
        assert inputs.reference == model and inputs.directory.is_dir()
        raise ValueError("not like this")

    monkeypatch.setattr("pipeline.evaluation.perplexity.HeldOutText.prepare", refuse, raising=False)
    monkeypatch.setattr(evaluate, "_model", lambda directory: pytest.fail("the model was loaded"))
    asked = context.make("asked")
    asked.launch["endpoint"], asked.inputs["reference"] = {"url": "u"}, asked.inputs["model"]
    with pytest.raises(ValueError, match="not like this"):
        evaluate.run(asked)


def test_an_endpoint_is_checked_with_the_request(monkeypatch):
    from tests.evaluation.judge_server import settings

    def check(**changes):
        launch = {"endpoint": settings("http://localhost:1/v1", **changes)}
        evaluate.check({"benchmark": BENCHMARK}, {"launch": launch})

    check()
    with pytest.raises(ValueError, match="num_parallel=0"):
        check(num_parallel=0)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.warns(UserWarning, match="variable JUDGE_KEY is not set"):
        check(key_variable="JUDGE_KEY")


def test_checking_needs_no_torch():
    code = (
        "import sys; from stages import evaluate\n"
        f"evaluate.check({{'benchmark': {BENCHMARK!r}}}, {{}})\n"
        "import pipeline.evaluation.harness, pipeline.evaluation.chat, pipeline.evaluation.shift\n"
        "import pipeline.evaluation.mt_bench, pipeline.evaluation.mint, pipeline.evaluation.positions\n"
        "assert not {'torch', 'lm_eval', 'datasets'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
