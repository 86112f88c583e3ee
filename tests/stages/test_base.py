"""The base stage: what is known of a model before anything runs, and a hub that cannot be reached."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from pipeline.data.tokens.vocabulary import highest_id
from pipeline.engine.run.forecast import Request
from pipeline.models import load
from pipeline.models.architecture.embedding import embedding_rows
from pipeline.models.architecture.facts import model_facts
from pipeline.models.directory import read_config
from stages import base
from tests.data.tokenizers_of_kinds import make

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
    assert model_facts(tmp_path)["max_position_embeddings"] == length


def test_a_model_that_the_hub_does_not_give_says_what_to_do(monkeypatch):
    def refuse(repo, **options):
        raise ConnectionError("no route to huggingface.co")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        ValueError, match=rf"some/model at revision {REVISION} could not be downloaded .*no route"
    ) as caught:
        base._download({"kind": "hub", "repo": "some/model", "revision": REVISION})
    assert f"hf download some/model --revision {REVISION} --local-dir DIR" in str(caught.value)
    assert "model=local model.source.path=DIR" in str(caught.value)


def test_an_error_that_is_not_the_networks_stays_what_it_is(monkeypatch):
    def fail(repo, **options):
        raise KeyError("a mistake")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(KeyError, match="a mistake"):
        base._download({"kind": "hub", "repo": "some/model", "revision": REVISION})


TURNS = "{% for m in messages %}{{ '<|turn|>' + m['content'] + '<|/turn|>' }}{% endfor %}"


def model_of(directory, tokenizer, num_rows, stated=None):
    """A model directory as far as `base` looks at it."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": stated or num_rows}
    (directory / "config.json").write_text(json.dumps(config))
    save_arrays({"model.embed_tokens.weight": np.zeros((num_rows, 2), np.float32)}, directory / "model.safetensors")
    tokenizer.save_pretrained(directory)
    source = {"kind": "local", "path": str(directory)}
    params = {"source": source, "num_blocks": None, "max_position_embeddings": None}
    return SimpleNamespace(
        params=params,
        directory=directory / "out",
        locate=lambda source: directory,
        record=lambda **facts: None,
        progress=lambda **fields: None,
    )


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_tokenizer_longer_than_the_embedding_is_refused_if_a_token_of_its_end_is_used(tmp_path, special, used):
    tokenizer = make("both", chat_template=TURNS if used else None)
    num_rows = len(tokenizer)
    tokenizer.add_tokens(["<|turn|>", "<|/turn|>"], special_tokens=special)
    context = model_of(tmp_path, tokenizer, num_rows)
    if not used:
        assert base.run(context)["vocab_size"] == num_rows
        return
    with pytest.raises(
        ValueError, match=rf"'<\|turn\|>' \(id {num_rows}\), which its chat template gives; .* has {num_rows}"
    ):
        base.run(context)


def test_an_embedding_with_more_rows_is_fine_and_counts_by_its_rows(tmp_path):
    facts = base.run(model_of(tmp_path, make("bos"), 512))
    assert facts["vocab_size"] == embedding_rows(tmp_path) == 512
    assert facts["num_tokens_of_tokenizer"] == highest_id(make("bos")) + 1 < 512


def test_a_config_of_another_embedding_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"embed_tokens.weight has 512 rows, but config.json says vocab_size=500"):
        base.run(model_of(tmp_path, make(), 512, stated=500))


@pytest.mark.parametrize(
    ("config", "names", "rows"),
    [
        ({"vocab_size": 9}, {"transformer.wte.weight": 9, "transformer.wpe.weight": 7}, 9),
        ({"text_config": {"vocab_size": 9}}, {"model.language_model.embed_tokens.weight": 9}, 9),
        ({"vocab_size": 9}, {"lm_head.weight": 9}, 9),
        ({}, {"gpt_neox.embed_in.weight": 9}, 9),
        ({"vocab_size": 9}, {"model.embed_tokens.weight": 9, "model.layers.1.embed_tokens.weight": 5}, 9),
        ({"model_type": "gpt2"}, {"lm_head.weight": 9}, 50257),
    ],
)
def test_the_rows_are_those_of_the_stored_embedding(tmp_path, config, names, rows):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_arrays({name: np.zeros((size, 1), np.float32) for name, size in names.items()}, tmp_path / "model.safetensors")
    assert embedding_rows(tmp_path) == rows


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
            progress=lambda **fields: None,
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


def local(source: Path) -> Request:
    """A request of a model that lies there."""
    params = {"source": {"kind": "local", "content": "c"}, "num_blocks": None, "max_position_embeddings": None}
    return Request(params, settings={"locations": {"c": {"path": str(source)}}})


def test_an_index_beside_a_whole_file_is_told(make_model, run_base, tmp_path):
    source = shutil.copytree(make_model(), tmp_path / "source")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    base.forecast(local(source))
    with pytest.warns(UserWarning, match=r"index with its files is ignored"):
        assert run_base(source)[0] == source


def test_a_local_model_whose_shards_are_absent_is_refused_before_anything_runs(make_model, tmp_path):
    source = shutil.copytree(make_model(), tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    with pytest.raises(ValueError, match=r"has no absent\.safetensors \(1 of 1 files of weights, which its model"):
        base.forecast(local(source))


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


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"model/config.json": "{}"}, r"no config.json in it; did you mean .*/given/model\?"),
        ({"a/config.json": "{}", "b/config.json": "{}"}, "did you mean one of .*/given/a, .*/given/b"),
        ({"manifest.json": '{"model_path": "/models/x"}'}, "it refers to /models/x; give that"),
        ({"manifest.json": "{"}, "give a directory that save_pretrained wrote"),
        ({}, "give a directory that save_pretrained wrote"),
    ],
)
def test_a_directory_that_is_no_model_says_which_is_near(tmp_path, files, advice):
    for name, text in {"given/notes.txt": "", **{f"given/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=advice):
        base.params_of({"source": {"kind": "local", "path": str(tmp_path / "given")}})
