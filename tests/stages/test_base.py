"""The base stage: what is known of a model before anything runs, and a hub that cannot be reached."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from pipeline.engine.model_facts import known_facts
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


def test_damaged_weights_are_refused_before_anything_is_made_of_them(make_model, tmp_path):
    directory = shutil.copytree(make_model(), tmp_path / "model")
    params = {"source": {"kind": "local"}, "num_blocks": None, "max_position_embeddings": None}
    context = SimpleNamespace(
        directory=tmp_path / "out", params=params, locate=lambda source: directory,
        record=lambda **fields: None, progress=lambda **fields: None,
    )  # fmt: skip
    assert base.run(context)["num_blocks"] == 4
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"damaged: model\.norm\.weight in .* holds 1 NaN and 0 infinite values"):
        base.run(context)
