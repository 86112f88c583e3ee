"""The base stage: what is known of a model before anything runs, and a hub that cannot be reached."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine.model_facts import known_facts
from pipeline.models import load
from pipeline.models.directory import read_config
from stages import base

REVISION = "0" * 40


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64}, 64),
        ({"seq_length": 64}, 64),
        ({"text_config": {"max_position_embeddings": 64}, "vision_config": {"max_position_embeddings": 8}}, 64),
        ({"vocab_size": 3}, None),
    ],
)
def test_how_long_a_row_may_be_is_read_under_each_familys_name(config, length, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **config}))
    model = {"source": {"kind": "local", "path": str(tmp_path)}, "num_blocks": None, "max_position_embeddings": None}
    assert known_facts(model)["max_position_embeddings"] == length


def test_a_model_that_the_hub_does_not_give_says_what_to_do(monkeypatch):
    def refuse(repo, **options):
        raise ConnectionError("no route to huggingface.co")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match=rf"some/model at revision {REVISION} cannot be had .*no route") as caught:
        base._download({"kind": "hub", "repo": "some/model", "revision": REVISION})
    assert f"hf download some/model --revision {REVISION} --local-dir DIR" in str(caught.value)
    assert "model=local model.source.path=DIR" in str(caught.value)


def test_an_error_that_is_not_the_networks_stays_what_it_is(monkeypatch):
    def fail(repo, **options):
        raise KeyError("a mistake")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(KeyError, match="a mistake"):
        base._download({"kind": "hub", "repo": "some/model", "revision": REVISION})


@pytest.fixture
def run_base(tmp_path):
    """A function that runs the stage on a local model; what it recorded, where the model then lies, and its metrics."""

    def run(directory):
        recorded = {}
        context = SimpleNamespace(
            params={"source": {"kind": "local", "path": str(directory)}, "num_blocks": None},
            directory=tmp_path / "base",
            locate=lambda source: directory,
            record=lambda **facts: recorded.update(facts),
        )
        metrics = base.run(context)
        return Path(recorded.get("model_path", tmp_path / "base" / "model")), metrics

    return run


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("change", [0.0, 0.5])
def test_a_head_that_the_config_ties_and_the_files_hold_apart_is_told_and_put_right(
    make_model, run_base, tmp_path, change, pickled
):
    source = shutil.copytree(make_model("bfloat16"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + change
    if pickled:
        (source / "model.safetensors").unlink()
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model, _ = run_base(source)
    said = [one for one in told if "values for lm_head.weight and model.embed_tokens.weight" in str(one.message)]
    assert bool(said) == (change > 0)
    assert (model == source) == (change == 0 and not pickled)
    assert read_config(model)["tie_word_embeddings"] == (change == 0)
    loaded = load(model)
    assert all(torch.equal(loaded.get_parameter(name), tensor) for name, tensor in tensors.items())


def test_an_index_beside_a_whole_file_is_told(make_model, run_base, tmp_path):
    source = shutil.copytree(make_model(), tmp_path / "source")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    base.check({"source": {"kind": "local"}}, {"local_model": str(source)})
    with pytest.warns(UserWarning, match=r"index with its files is ignored"):
        assert run_base(source)[0] == source


def test_a_local_model_whose_shards_are_absent_is_refused_before_anything_runs(make_model, tmp_path):
    source = shutil.copytree(make_model(), tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    with pytest.raises(ValueError, match=r"has no absent\.safetensors \(1 of 1 files of weights, which its model"):
        base.check({"source": {"kind": "local"}}, {"local_model": str(source)})
