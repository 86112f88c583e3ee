import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.evaluation.text.base_samples import read_samples
from pipeline.models.architecture.tiny import save_random
from stages import samples as stage
from tests.conftest import TINY_LLAMA
from tests.stages.requests import request

CONF = Path(__file__).parents[2] / "conf" / "samples" / "base.yaml"


def params(**changes):
    return {"samples": {**yaml.safe_load(CONF.read_text()), **changes}}


@pytest.fixture
def run(tmp_path):
    save_random(tmp_path / "base" / "model", TINY_LLAMA, "bfloat16", seed=0)
    (tmp_path / "base" / "manifest.json").write_text("{}")

    def make(name, is_main=True, **changes):
        (tmp_path / name).mkdir()
        context = SimpleNamespace(
            params=params(**changes), inputs={"model": tmp_path / "base"}, directory=tmp_path / name, is_main=is_main,
            progress=lambda **fields: None,
        )  # fmt: skip
        return stage.run(context), tmp_path / name

    return make


def test_the_stage_writes_the_same_samples_again(run):
    metrics, first = run("first", num_tokens=4)
    found = read_samples(first)
    assert metrics == {"num_free": 12, "num_chat": 12, "num_tokens": sum(len(one.tokens) for one in found)}
    assert (first / "samples.jsonl").read_bytes() == (run("second", num_tokens=4)[1] / "samples.jsonl").read_bytes()
    assert run("other", is_main=False) == ({}, first.parent / "other")


def test_a_base_without_a_chat_template_is_told_of_before_anything_runs():
    with pytest.warns(UserWarning, match="no chat template, so its samples hold no answers to chat prompts"):
        stage.forecast(request(params(), {"chat_template": False}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage.forecast(request(params(), {"chat_template": True}))
        stage.forecast(request(params(), {}))  # not known yet
        stage.forecast(request(params(prompts=[]), {"chat_template": False}))


def test_the_check_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"num_tokens=64 .* do not fit into the base's 64 positions; use at most 63"):
        stage.forecast(request(params(), {"max_position_embeddings": 64}))
    with pytest.raises(ValueError, match="num_free=0 leaves none"):
        stage.forecast(request(params(num_free=0), {"chat_template": False}))
    with pytest.raises(ValueError, match="num_free='many' must be a whole number"):
        stage.forecast(request(params(num_free="many")))
    with pytest.raises(ValueError, match=r"samples\.prompts=.*must be texts that are not empty"):
        stage.forecast(request(params(prompts=[""])))


def test_the_check_needs_no_torch():
    code = (
        "import sys, json; from stages import samples; from pipeline.engine.run.forecast import Request; "
        f"samples.forecast(Request(json.loads({json.dumps(json.dumps(params()))}))); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONF.parents[2])
