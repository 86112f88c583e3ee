"""A model by reference holds only what is its own, is one model to our loader, and trusts no base that changed."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.agreement import check_directory
from pipeline.models.directory import materialise
from pipeline.models.files.safetensors_io import read_index, weight_files
from pipeline.models.files.tensor_file import content_hash, tensors_hash
from pipeline.models.save import save_trained

GATE = "model.layers.2.mlp.gate_proj.weight"
DOWN = "model.layers.2.mlp.down_proj.weight"


def expand(source, target, save="delta", num_groups=2, **settings):
    found = read_source(source)
    return write_expansion(BlockExpansion(num_groups, 1, **settings).plan(found), found, target, save=save)


@pytest.fixture
def pair(make_model, tmp_path):
    """The same expansion of a copy of the base, whole and by reference."""
    base = shutil.copytree(make_model("bfloat16"), tmp_path / "base")
    expand(base, tmp_path / "whole", "full")
    expand(base, tmp_path / "ref")
    return tmp_path / "whole", tmp_path / "ref"


def same_model(one, other):
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    assert first.keys() == second.keys()
    return all(first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first)


def test_it_holds_only_what_is_not_a_copy(pair):
    ref = pair[1]
    own = load_file(ref / "blocks.safetensors")
    assert sorted(own) == sorted(
        f"model.layers.{i}.{w}.weight" for i in (2, 5) for w in ("self_attn.o_proj", "mlp.down_proj")
    )
    assert not list(ref.glob("model*")) and (ref / "tokenizer.json").exists() and (ref / "expansion.json").exists()
    check_directory(ref)


def test_the_index_is_that_of_the_whole_model(pair):
    whole, ref = pair
    one, other = read_index(whole), read_index(ref)
    assert one.keys() == other.keys() and tensors_hash(one) == tensors_hash(other)
    assert {file.parent.name for file in weight_files(ref)} == {"base", "ref"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["auto", torch.float32])
def test_it_loads_as_the_whole_model(make_model, tmp_path, tied, dtype):
    source = make_model("bfloat16", tie_word_embeddings=tied)
    expand(source, tmp_path / "whole", "full")
    expand(source, tmp_path / "ref")
    one, other = load(tmp_path / "whole", dtype), load(tmp_path / "ref", dtype)
    assert same_model(one, other) and not other.training
    assert other.dtype == (torch.bfloat16 if dtype == "auto" else dtype)
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied
    assert other.generation_config.to_dict() == one.generation_config.to_dict()
    ids = torch.arange(12)[None]
    assert torch.equal(one(ids).logits, other(ids).logits)
    assert torch.equal(one.generate(ids, max_new_tokens=4), other.generate(ids, max_new_tokens=4))


def test_auto_is_the_stored_dtype_where_the_config_names_none(pair):
    for directory in pair:
        config = json.loads((directory / "config.json").read_text())
        config.pop("dtype", None), config.pop("torch_dtype", None)
        (directory / "config.json").write_text(json.dumps(config))
    assert load(pair[0]).dtype == load(pair[1]).dtype == torch.bfloat16


def test_training_the_loaded_model_does_not_reach_the_base(pair):
    base = pair[1].parent / "base"
    before = tensors_hash(read_index(base))
    model = load(pair[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert tensors_hash(read_index(base)) == before


def test_stock_transformers_fails_instead_of_making_up_weights(pair):
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(pair[1])


def test_materialised_it_is_the_whole_export_file_for_file(pair, tmp_path):
    whole, ref = pair
    materialise(ref, tmp_path / "out")
    assert tensors_hash(read_index(tmp_path / "out")) == tensors_hash(read_index(whole))
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted(f.name for f in whole.iterdir())
    assert same_model(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), load(whole))
    materialise(whole, tmp_path / "again", shard_bytes=30_000)
    assert tensors_hash(read_index(tmp_path / "again")) == tensors_hash(read_index(whole))


def test_a_second_round_refers_to_where_the_bytes_are(pair, tmp_path):
    whole, ref = pair
    expand(whole, tmp_path / "whole2", "full", num_groups=3)
    expand(ref, tmp_path / "ref2", num_groups=3)
    assert tensors_hash(read_index(tmp_path / "ref2")) == tensors_hash(read_index(tmp_path / "whole2"))
    assert {file.parent.name for file in weight_files(tmp_path / "ref2")} == {"base", "ref", "ref2"}
    assert same_model(load(tmp_path / "ref2"), load(tmp_path / "whole2"))


@pytest.mark.parametrize("save", ["full", "delta"])
def test_a_model_by_reference_is_trained_and_saved(pair, tmp_path, save):
    trained = {DOWN: torch.full((32, 64), 0.5), GATE: torch.full((64, 32), 0.25)}
    save_trained(pair[1], tmp_path / "trained", trained, save=save)
    model = load(tmp_path / "trained")
    assert bool((model.get_parameter(DOWN) == 0.5).all()) and bool((model.get_parameter(GATE) == 0.25).all())
    before, after = read_index(pair[0]), read_index(tmp_path / "trained")
    assert all(content_hash(before[n]) == content_hash(after[n]) for n in before if n not in trained)
    assert (tmp_path / "trained" / "expansion.json").read_text() == (pair[1] / "expansion.json").read_text()
    if save == "delta":
        assert sorted(load_file(tmp_path / "trained" / "blocks.safetensors")) == sorted(trained)


def test_both_may_move_together(pair, tmp_path):
    moved = shutil.move(pair[1].parent, tmp_path.parent / f"{tmp_path.name}-moved")
    load(f"{moved}/ref")
    shutil.rmtree(moved)


def test_a_base_that_moved_is_named(pair):
    (pair[1].parent / "base").rename(pair[1].parent / "elsewhere")
    with pytest.raises(ValueError, match=r"refers to weights in .*base/model\.safetensors, which is not there; put"):
        load(pair[1])


@pytest.mark.parametrize("change", ["trained", "other dtype", "truncated"])
def test_a_base_that_changed_is_refused(pair, change):
    file = pair[1].parent / "base" / "model.safetensors"
    tensors = load_file(file)
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        if change == "trained":
            tensors["model.norm.weight"] += 0.5
        save_file({n: t.float() if change == "other dtype" else t for n, t in tensors.items()}, file, {"format": "pt"})
    for read in (read_index, check_directory, load):
        with pytest.raises(ValueError, match=r"base/model\.safetensors, which changed since: expected"):
            read(pair[1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("files"),
        lambda record: record["tensors"].update({DOWN: "own"}),
        lambda record: record["tensors"].update({DOWN: ["own", "no.such.tensor"]}),
        lambda record: record["tensors"].update({DOWN: ["nowhere", DOWN]}),
    ],
)
def test_a_damaged_reference_is_named(pair, damage):
    file = pair[1] / "reference.json"
    record = json.loads(file.read_text())
    damage(record)
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"reference\.json (is damaged|refers to)"):
        read_index(pair[1])


def test_weights_that_a_new_model_needs_are_not_overwritten(pair):
    base = pair[1].parent / "base"
    for read, write in ((pair[1], base), (pair[1], pair[1]), (base, base)):
        with pytest.raises(ValueError, match="holds weights that the new model is made from"):
            materialise(read, write)
    assert same_model(load(pair[0]), load(pair[1]))


def test_two_forms_in_one_directory_are_refused(pair):
    shutil.copyfile(pair[0] / "model.safetensors", pair[1] / "model.safetensors")
    with pytest.raises(ValueError, match="holds a whole model and one by reference"):
        check_directory(pair[1])


def test_one_form_replaces_the_other(pair, tmp_path):
    base = pair[1].parent / "base"
    expand(base, pair[1], "full")
    assert tensors_hash(read_index(pair[1])) == tensors_hash(read_index(pair[0]))
    expand(base, pair[1])
    assert not (pair[1] / "model.safetensors").exists() and same_model(load(pair[1]), load(pair[0]))
