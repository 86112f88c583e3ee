import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.base import Item, content_hash, score
from pipeline.models.architecture.tiny import save_random
from stages import evaluate
from tests.stages.requests import request

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
    "_target_": "pipeline.evaluation.text.perplexity.HeldOutText",
    "documents": None,
    "sources": None,
    "window": 32,
    "max_document_tokens": None,
    "max_items": None,
    "max_tokens": None,
}

CODE = {
    "_target_": "pipeline.evaluation.code.benchmark.CodeBenchmark",
    "rows": {"_target_": "pipeline.data.sources.documents.LocalFiles"},
    "form": {"_target_": "pipeline.evaluation.code.problems.HumanEval", "stop": [], "strip_prompt": True},
    "limits": {
        "_target_": "pipeline.evaluation.sandbox.Limits", "cpu_s": 20, "wall_s": 99.0, "memory_mb": 256, "processes": 8,
        "scratch_mb": 4, "output_kb": 64, "packages": [],
    },
    "limit": None, "num_samples": 1, "k": [1], "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4, "seed": 0,
}  # fmt: skip


def read_items(directory):
    rows = pq.read_table(directory / "items.parquet").to_pylist()
    known = [{key: value for key, value in row.items() if not key.startswith("gold_")} for row in rows]
    return [Item(**{**row, "parts": dict(row["parts"])}) for row in known]


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
            launch={"isolation": "full", "sandbox_workers": 1},
            access={},
        )

    evaluate._model.cache_clear()
    return SimpleNamespace(make=make, seen=seen)


def test_items_and_metrics_are_written(context):
    first = context.make("first")
    metrics = evaluate.run(first)
    assert {file.name for file in first.directory.iterdir()} == {"items.parquet"}
    items = read_items(first.directory)
    assert [item.prompt for item in items] == sorted((f"document number {i} grows" for i in range(3)), key=content_hash)
    assert metrics == {**score(items)._asdict(), "metric": "bits_per_byte"}
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


def test_one_item_has_no_standard_error(context):
    metrics = evaluate.run(context.make("single", max_items=1))
    assert (metrics["n"], metrics["stderr"]) == (1, None) and metrics["value"] > 0


def test_only_rank_zero_scores(context):
    other = context.make("other", is_main=False)
    assert evaluate.run(other) == {}
    assert not list(other.directory.iterdir())


def test_bad_settings_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        evaluate.forecast(request({"benchmark": {**BENCHMARK, "window": 0}}))
    with pytest.raises(ValueError, match=r"windwo is not a setting of HeldOutText; did you mean window\?"):
        evaluate.forecast(request({"benchmark": {**BENCHMARK, "windwo": 3}}))
    with pytest.raises(ValueError, match=r"no\.such\.Thing"):
        evaluate.forecast(request({"benchmark": {"_target_": "no.such.Thing"}}))
    with pytest.raises(ValueError, match="window=32 is longer than the model's 16 positions"):
        evaluate.forecast(request({"benchmark": BENCHMARK}, {"max_position_embeddings": 16}))
    evaluate.forecast(request({"benchmark": BENCHMARK}, {"max_position_embeddings": 32}))


def test_what_is_wrong_is_found_before_the_model_is_loaded(context, monkeypatch):
    def refuse(self, model, inputs):
        assert (model / "config.json").is_file() and inputs.endpoint == {"url": "u"}
        assert inputs.reference == model and inputs.directory.is_dir()
        raise ValueError("not like this")

    monkeypatch.setattr("pipeline.evaluation.text.perplexity.HeldOutText.prepare", refuse, raising=False)
    monkeypatch.setattr(evaluate, "_model", lambda directory: pytest.fail("the model was loaded"))
    asked = context.make("asked")
    asked.access["endpoint"], asked.inputs["reference"] = {"url": "u"}, asked.inputs["model"]
    with pytest.raises(ValueError, match="not like this"):
        evaluate.run(asked)


def test_an_endpoint_is_checked_with_the_request(monkeypatch):
    from tests.evaluation.judge_server import settings

    def check(**changes):
        access = {"endpoint": settings("http://localhost:1/v1", **changes)}
        evaluate.forecast(request({"benchmark": BENCHMARK}, access=access))

    check()
    with pytest.raises(ValueError, match="num_parallel=0"):
        check(num_parallel=0)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.warns(UserWarning, match="variable JUDGE_KEY is not set"):
        check(key_variable="JUDGE_KEY")


def test_checking_needs_no_torch():
    code = (
        "import sys; from stages import evaluate\n"
        "from pipeline.engine.run.forecast import Request\n"
        f"evaluate.forecast(Request({{'benchmark': {BENCHMARK!r}}}))\n"
        "import pipeline.evaluation.tasks.harness, pipeline.evaluation.text.chat, pipeline.evaluation.text.shift\n"
        "import pipeline.evaluation.judge.mt_bench, pipeline.evaluation.judge.mint\n"
        "import pipeline.evaluation.text.positions\n"
        "assert not {'torch', 'lm_eval', 'datasets'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def piqa(rows, limit=None):
    settings = {"task": "piqa/piqa", "metric": "acc_norm", "filter": None, "num_fewshot": None, "until": None}
    settings |= {"average": "documents", "limit": limit, "adapter": "none", "revision": None}
    source = {"_target_": "pipeline.data.sources.documents.LocalFiles", "source": {"kind": "local", "path": str(rows)}}
    return {"_target_": "pipeline.evaluation.tasks.harness.HarnessTask", **settings, "splits": {"validation": source}}


def test_lm_evaluation_harness_own_loop_gives_the_same_items(context, tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = ({"goal": f"Lift {i}", "sol1": "Use a lever.", "sol2": "Wait.", "label": i % 2} for i in range(6))
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = []
    for backend in ({}, {"backend": "hf"}):
        one = context.make(f"with-{len(written)}")
        one.params = {"benchmark": piqa(rows), **backend}
        one.locate, one.listing = lambda source: rows, lambda source: [rows.name]
        metrics = evaluate.run(one)
        assert metrics["n"] == 6
        written.append(read_items(one.directory))
    assert written[0] == written[1]


def test_a_backend_that_cannot_score_a_benchmark_is_refused():
    with pytest.raises(ValueError, match="HeldOutText needs the model in this process"):
        evaluate.forecast(request({"benchmark": BENCHMARK, "backend": "vllm"}))
    with pytest.raises(ValueError, match="name it for each model of the run"):
        evaluate.forecast(request({"benchmark": piqa("rows"), "backend": "endpoint", "served_model": None}))
    with pytest.raises(ValueError, match=r"vLLM has no calm_llama.*score it here, evaluate.backend=local"):
        evaluate.forecast(request({"benchmark": piqa("rows"), "backend": "vllm"}, {"model_type": "calm_llama"}))
    with pytest.raises(ValueError, match="near it are piqa/piqa"):
        evaluate.forecast(request({"benchmark": {**piqa("rows"), "task": "piqa/pika"}}))


def hub_rows(repo):
    source = {"kind": "hub", "repo": repo, "revision": "0" * 40}
    row_source = {"_target_": "pipeline.data.sources.documents.HubDataset", "source": source}
    return {"benchmark": {"splits": {"train": row_source, "test": row_source}}}


def test_rows_that_cannot_be_had_are_named_before_anything_is_built(tmp_path):
    """By the driver, without torch and once for a data set; also that `items=mirror` would do."""
    code = (
        "import sys; from stages import evaluate\n"
        "try:\n"
        f"    evaluate.check_network({hub_rows('some/set')!r})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy import'"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert "dataset some/set at revision 000" in done.stdout and "OfflineModeIsEnabled" in done.stdout
    assert "hf download some/set --repo-type dataset" in done.stdout and "items=mirror items.path=DIR" in done.stdout


def test_a_mirror_that_is_not_there_comes_with_its_command(tmp_path):
    def mirror(folder):
        return {"_target_": "pipeline.evaluation.tasks.rows.Mirror", "source": {"kind": "local", "path": str(folder)}}

    missing = tmp_path / "openai" / "gsm8k"
    told = evaluate.mirror_advice({"splits": {"train": mirror(missing), "test": mirror(missing)}})
    assert told == f"; to put it there: hf download openai/gsm8k --repo-type dataset --local-dir {missing}"
    missing.mkdir(parents=True)
    assert evaluate.mirror_advice({"splits": {"test": mirror(missing)}}) == ""


@pytest.fixture
def human_eval(context):
    """Writes one problem; the params of a benchmark over it and a context that reads it."""
    rows = context.make("rows").directory / "rows.jsonl"
    problem = {"task_id": 0, "prompt": "p", "canonical_solution": "s", "test": "t", "entry_point": "e"}
    rows.write_text(json.dumps(problem))
    settings = {**CODE, "rows": {**CODE["rows"], "source": {"kind": "local", "path": str(rows)}}}

    def make(name, **params):
        one = context.make(name)
        one.params, one.launch = {"benchmark": settings, **params}, {"isolation": "limits", "sandbox_workers": 1}
        one.locate, one.listing = (lambda source: rows), (lambda source: [rows.name])
        return one

    return make


def test_programs_are_written_by_the_server_that_was_asked_for(human_eval, monkeypatch):
    from pipeline.models import load, load_tokenizer
    from tests.evaluation.judge_server import settings
    from tests.evaluation.remote.test_completions import server

    local = human_eval("local")
    expected = evaluate.run(local)
    directory = local.inputs["model"] / "model"
    served = server.Served(load(directory), load_tokenizer(directory))
    monkeypatch.setattr(evaluate, "_model", lambda directory: pytest.fail("the model was loaded"))
    asked = human_eval("served", backend="endpoint", served_model="tiny")
    evaluate.forecast(request(asked.params))
    with server.serving(served) as url:
        asked.access["server"] = settings(url)
        assert evaluate.run(asked) == expected
    assert [body["model"] for body in served.asked] == ["tiny"]
    assert read_items(asked.directory) == read_items(local.directory)


def test_what_a_backend_cannot_run_stays_in_this_process():
    def found(target, asked):
        return evaluate.backend_for({"_target_": f"pipeline.evaluation.{target}"}, asked)

    for target in ("code.benchmark.CodeBenchmark", "judge.mt_bench.MTBench", "judge.mint.Mint"):
        assert [found(target, asked) for asked in ("vllm", "endpoint", "hf")] == ["vllm", "endpoint", "local"]
    for target in ("shift.TokenShift", "positions.PositionLoss", "perplexity.HeldOutText", "chat.HeldOutChat"):
        assert {found(f"text.{target}", asked) for asked in ("vllm", "endpoint", "hf", "local")} == {"local"}
    for asked in ("vllm", "hf", "tgi"):
        assert found("tasks.harness.HarnessTask", asked) == found("tasks.labels.LabelledOptions", asked) == asked
        assert found("no.Such", asked) == asked


def test_programs_are_refused_where_no_model_was_loaded_yet(context, monkeypatch):
    """In the driver's check, and again in the worker: a machine that cannot isolate costs no training."""
    from pipeline.evaluation.sandbox import Sandbox

    monkeypatch.setattr(Sandbox, "_try", lambda self, level: None if level == "limits" else "unshare: not permitted")
    rows = context.make("rows").directory / "rows.jsonl"
    problem = {"task_id": 0, "prompt": "p", "canonical_solution": "s", "test": "t", "entry_point": "e"}
    rows.write_text(json.dumps(problem))
    params = {"benchmark": {**CODE, "rows": {**CODE["rows"], "source": {"kind": "local", "path": str(rows)}}}}
    with pytest.raises(ValueError, match="isolation=full or not at all"):
        evaluate.forecast(request(params, launch={"isolation": "full"}))
    evaluate.forecast(request(params, launch={"isolation": "limits"}))
    evaluate.forecast(request(params))
    worker = context.make("worker")
    worker.params, worker.launch = params, {"isolation": "full", "sandbox_workers": 1}
    worker.locate, worker.listing = (lambda source: rows), (lambda source: [rows.name])
    monkeypatch.setattr(evaluate, "_model", lambda directory: pytest.fail("the model was loaded"))
    with pytest.raises(RuntimeError, match="unshare: not permitted"):
        evaluate.run(worker)
