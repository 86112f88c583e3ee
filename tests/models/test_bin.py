"""Old checkpoints become safetensors with the same tensors, and a pickle of anything else is not run."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.models import load
from pipeline.models.bin import convert_bin, main
from pipeline.models.files.safetensors_io import has_only_pickles, read_index


@pytest.fixture
def old(make_model, tmp_path):
    """A function that saves a tiny model as torch did: (directory, its state dict with tied names)."""

    def make(num_shards=1, legacy=False, **config):
        source = make_model("bfloat16", **config)
        directory = shutil.copytree(source, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
        state = load(source).state_dict()
        assert "lm_head.weight" in state
        names = sorted(state)
        if num_shards == 1:
            torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
            return directory, state
        weight_map = {n: f"pytorch_model-{i % num_shards}.bin" for i, n in enumerate(names)}
        weight_map["lm_head.weight"] = weight_map["model.embed_tokens.weight"]  # where torch's sharder puts it
        for file in set(weight_map.values()):
            torch.save({n: state[n] for n in names if weight_map[n] == file}, directory / file)
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return directory, state

    return make


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("num_shards", "legacy"), [(1, False), (1, True), (3, False)])
def test_the_same_model_comes_back(old, tmp_path, tied, num_shards, legacy):
    directory, state = old(num_shards, legacy, tie_word_embeddings=tied)
    assert has_only_pickles(directory)
    convert_bin(directory, tmp_path / "new")
    model = load(tmp_path / "new")
    assert not has_only_pickles(tmp_path / "new") and (tmp_path / "new" / "tokenizer.json").exists()
    assert ("lm_head.weight" in read_index(tmp_path / "new")) != tied
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert len(list((tmp_path / "new").glob("*.safetensors"))) == num_shards


def test_views_and_shared_memory_are_written_out(old, tmp_path):
    directory, state = old(tie_word_embeddings=False)
    shared = state["model.layers.0.input_layernorm.weight"]
    state["model.layers.1.input_layernorm.weight"] = shared
    state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].t().contiguous().t()
    torch.save(state, directory / "pytorch_model.bin")
    convert_bin(directory, tmp_path / "new")
    new = load_file(tmp_path / "new" / "model.safetensors")
    assert new.keys() == state.keys() and all(torch.equal(new[n], state[n]) for n in state)


def test_tied_names_with_different_values_are_both_kept(old, tmp_path):
    directory, state = old(tie_word_embeddings=True)
    torch.save({**state, "lm_head.weight": state["lm_head.weight"] + 1}, directory / "pytorch_model.bin")
    convert_bin(directory, tmp_path / "new")
    assert "lm_head.weight" in read_index(tmp_path / "new")


class Malicious:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(old, tmp_path, legacy):
    directory, state = old()
    state["model.norm.weight"] = Malicious(tmp_path / "witness")
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="is refused: it is a pickle of more than tensors"):
        convert_bin(directory, tmp_path / "new")
    assert not (tmp_path / "witness").exists() and not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.zeros(1)}}, {"step": 3}])
def test_what_is_no_state_dict_is_named(old, tmp_path, content):
    directory, _ = old()
    torch.save(content, directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a plain state dict is required"):
        convert_bin(directory, tmp_path / "new")


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_damaged_file_is_named(old, tmp_path, keep):
    directory, _ = old()
    file = directory / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is (damaged|refused)"):
        convert_bin(directory, tmp_path / "new")


def test_missing_shards_are_named(old, tmp_path):
    directory, _ = old(num_shards=2)
    (directory / "pytorch_model-1.bin").unlink()
    with pytest.raises(ValueError, match=r"has no pytorch_model-1\.bin"):
        convert_bin(directory, tmp_path / "new")


def test_reading_an_old_checkpoint_says_what_to_do(old):
    directory, _ = old()
    with pytest.raises(ValueError, match=r"only as pickles .*python -m pipeline\.models\.bin"):
        read_index(directory)


def test_the_command_converts_or_says_why_not(old, tmp_path, monkeypatch, capsys):
    directory, _ = old()
    monkeypatch.setattr("sys.argv", ["bin", str(directory), str(tmp_path / "new")])
    main()
    assert load(tmp_path / "new").config.num_hidden_layers == 4
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(SystemExit):
        main()
    assert "has no pytorch_model.bin" in capsys.readouterr().err
