"""Which names a model has for one tensor, what its files say of them, and what its config may say."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models import load
from pipeline.models.architecture.aliases import aliases, is_untied, stored_apart, stored_name, tied_names, untied
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.save import as_stored, save_trained

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def twice(make_model, tmp_path):
    """A function that saves a tied model under both names, the head changed by so much."""

    def make(change=0.0, **config):
        directory = shutil.copytree(make_model("float32", **config), tmp_path / f"m{change}", dirs_exist_ok=True)
        tensors = load_file(directory / "model.safetensors")
        save_file({**tensors, HEAD: tensors[TABLE] + change}, directory / "model.safetensors", {"format": "pt"})
        return directory

    return make


def test_names_of_one_parameter_are_found_by_what_the_model_shares(twice):
    model = load(twice())
    assert set(aliases(model)) == {TABLE, HEAD} and set(aliases(model)[HEAD]) == {TABLE, HEAD}
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight  # as no config says
    assert len(aliases(model)["model.layers.1.mlp.up_proj.weight"]) == 2
    assert not aliases(load(twice(0.5)))


def test_what_the_config_ties_and_the_files_hold_apart_is_seen(twice, make_model):
    for change, config, apart in ((0.0, {}, False), (0.5, {}, True), (0.5, {"tie_word_embeddings": False}, False)):
        directory = make_model("float32", **config) if config else twice(change)
        assert is_untied(load(directory)) == apart
        assert stored_apart(directory, read_index(directory)) == ([(HEAD, TABLE)] if apart else [])


def test_a_table_apart_in_a_model_without_its_prefix_is_seen(make_model, tmp_path):
    source = make_model("float32", model_type="gpt2", n_embd=32, n_layer=2, n_head=2)
    directory = shutil.copytree(source, tmp_path / "m")
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(directory / "model.safetensors").items()}
    tensors[HEAD] = tensors["wte.weight"] * 2
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    assert tied_names(directory) == {HEAD: "transformer.wte.weight"}
    assert stored_apart(directory, read_index(directory)) == [(HEAD, "wte.weight")]


def test_a_name_is_looked_for_with_and_without_the_prefix_of_the_body():
    assert stored_name("transformer.wte.weight", "transformer", {"wte.weight"}) == "wte.weight"
    assert stored_name("wte.weight", "transformer", {"transformer.wte.weight"}) == "transformer.wte.weight"
    assert stored_name("wte.weight", "transformer", {"other"}) == stored_name("wte.weight", "", set()) == "wte.weight"


def test_an_untied_config_says_so_in_every_section_that_speaks_of_it():
    config = {"model_type": "x", "text_config": {"tie_word_embeddings": True, "a": 1}, "vision_config": {"b": 2}}
    assert json.loads(untied(json.dumps(config))) == {
        "model_type": "x",
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False, "a": 1},
        "vision_config": {"b": 2},
    }


def test_every_stored_name_is_written_and_none_is_added(twice, make_model, tmp_path):
    for directory, names in ((twice(), {TABLE, HEAD}), (make_model("float32"), {TABLE})):
        model, stored = load(directory), read_index(directory)
        model.lm_head.weight.data += 1
        for given in (TABLE, HEAD):
            written = as_stored(model, {given: model.lm_head.weight}, stored)
            assert written.keys() == names
            assert all(torch.equal(tensor, model.lm_head.weight) for tensor in written.values())


def test_a_value_that_the_files_dtype_cannot_hold_is_refused(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"model\.norm\.weight was trained to values up to 1e\+06, and F16"):
        save_trained(make_model("float16"), tmp_path / "m", {"model.norm.weight": torch.full((32,), 1e6)})
