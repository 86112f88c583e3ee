"""What was trained is what is saved: under every name, in every layout, and a wrong save is found."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pipeline.models import directory, load
from pipeline.models.directory import as_copies, rewrite
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.save import as_stored
from pipeline.records.expansion import read_expansion
from pipeline.training import saving
from pipeline.training.methods.strategy import Full, Lora, NewBlocks
from pipeline.training.reload_check import NUM_TOKENS, check_rows
from tests.training.test_fit import store as store
from tests.training.test_fit import train

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
GEMMA = {"model_type": "gemma2", "head_dim": 8, "num_hidden_layers": 2}
MODELS = {  # config, input table, head
    "llama": ({"num_hidden_layers": 2}, "model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": (GPT2, "transformer.wte.weight", "lm_head.weight"),
    "gemma2": (GEMMA, "model.embed_tokens.weight", "lm_head.weight"),
    "opt": (
        {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2},
        "model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ),
}
LORA = Lora(4, 8, 0.0, "all-linear")


class Watched:
    """A strategy that keeps a copy of the model as it is when training ends."""

    def __init__(self, strategy):
        self.strategy, self.model = strategy, None

    def __getattr__(self, name):
        return getattr(self.strategy, name)

    def trained(self, model):
        result = self.strategy.trained(model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.model = copy.deepcopy(base).float().eval()
        return result


def layout(make_model, rng, root, **fixed):
    """A model whose files are laid out by chance; which it is."""
    chance = {
        "model": str(rng.choice(list(MODELS))),
        "dtype": str(rng.choice(["float32", "bfloat16", "float16"])),
        "stores": str(rng.choice(["table", "head", "both", "apart"])),
        "sharded": bool(rng.integers(2)),
        "bare": bool(rng.integers(2)),  # without the prefix of the body
        "referred": bool(rng.integers(2)),
        **fixed,
    }
    config, table, head = MODELS[chance["model"]]
    source = shutil.copytree(make_model(chance["dtype"], **config), root / "source")
    tensors = load_file(source / "model.safetensors")
    tensors[head] = tensors[table].clone()
    if chance["stores"] == "apart":
        tensors[head] += torch.randn_like(tensors[head]) * 0.02
    elif chance["stores"] != "both":
        del tensors[head if chance["stores"] == "table" else table]
    if chance["bare"] and chance["model"] == "gpt2":
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    write(source, tensors, chance["sharded"])
    if chance["referred"]:
        rewrite(source, root / "referring", as_copies(read_index(source)), save="delta")
        source = root / "referring"
    return source, chance


def write(source, tensors, sharded):
    names = sorted(tensors)
    half = len(names) // 2 if sharded else len(names)
    if not sharded:
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        return
    (source / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00002.safetensors": part for i, part in enumerate((names[:half], names[half:]))}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, source / file, {"format": "pt"})
    weight_map = {name: file for file, part in shards.items() for name in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def logits(model):
    for parameter in model.parameters():  # mapped files put tensors at any address, on which sums depend
        parameter.data = parameter.data.clone()
    ids = torch.arange(40)[None] % 60 + 3
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def check(source, run, watched, dtype, save):
    """The saved model is the one in memory rounded to the dtype of the files, by our loader and by the stock one."""
    expected, found = watched.model, load(run / "model", dtype=torch.float32)
    for parameter in expected.parameters():
        parameter.data = parameter.data.to(dtype).float()
    expected.set_attn_implementation(found.config._attn_implementation)
    assert {name for name, _ in found.named_parameters()} == {name for name, _ in expected.named_parameters()}
    assert all(torch.equal(p, expected.get_parameter(n)) for n, p in found.named_parameters())
    assert torch.equal(logits(found), logits(expected))
    assert read_index(run / "model").keys() == read_index(source).keys()
    if save == "full":
        stock = transformers.AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
        assert torch.equal(logits(stock), logits(expected))


@pytest.mark.parametrize("seed", range(10))
def test_files_laid_out_by_chance_hold_what_was_trained(make_model, store, tmp_path, seed):
    rng = np.random.default_rng(seed)
    source, chance = layout(make_model, rng, tmp_path)
    strategy, save = [Full(), LORA][rng.integers(2)], str(rng.choice(["full", "delta"]))
    watched = Watched(strategy)
    dtype = getattr(torch, chance["dtype"])
    train(source, tmp_path / "run", store, watched, num_steps=2, save=save, validate_every=2)
    check(source, tmp_path / "run", watched, dtype, save)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    shared = len(watched.model.state_dict()) > len(list(watched.model.parameters()))
    if chance["model"] != "opt":  # which has buffers
        assert shared == (chance["stores"] != "apart")
    assert config.get("tie_word_embeddings", True) == (chance["stores"] != "apart")


@pytest.mark.parametrize("save", ["full", "delta"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("stores", ["table", "head", "both", "apart"])
def test_an_expanded_model_trains_whichever_of_the_tied_names_are_stored(
    make_model, grow, store, tmp_path, stores, name, save
):
    fixed = {"model": name, "dtype": "bfloat16", "sharded": False, "bare": True, "referred": False}
    source, _ = layout(make_model, np.random.default_rng(0), tmp_path, stores=stores, **fixed)
    grown = grow(source)
    watched = Watched(NewBlocks())
    train(grown, tmp_path / "run", store, watched, num_steps=2, save=save)
    check(grown, tmp_path / "run", watched, torch.bfloat16, save)
    before, after = read_index(grown), read_index(tmp_path / "run" / "model")
    moved = {name for name in before if bytes_of(before[name]) != bytes_of(after[name])}
    assert moved and moved <= set(read_expansion(grown).new_parameters)
    assert ("wte.weight" in before) == (name == "gpt2" and stores != "head")  # as OpenAI's own files have it


def bytes_of(stored):
    from pipeline.models.files.tensor_file import read_bytes

    return read_bytes(stored)


def test_a_tied_tensor_that_is_stored_in_two_dtypes_stays_one(make_model, store, tmp_path):
    fixed = {"model": "llama", "dtype": "bfloat16", "stores": "both", "sharded": False, "bare": False}
    source, _ = layout(make_model, np.random.default_rng(0), tmp_path, referred=False, **fixed)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
    write(source, tensors, sharded=False)
    watched = Watched(Full())
    train(source, tmp_path / "run", store, watched, num_steps=2)
    check(source, tmp_path / "run", watched, torch.bfloat16, "full")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert after["lm_head.weight"].dtype == torch.float32
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"].float())


@pytest.mark.parametrize("save", ["full", "delta"])
@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (NewBlocks(), {}),
        (NewBlocks(), {"precision": "bf16"}),
        (NewBlocks(), {"frozen_dtype": "bf16"}),
        (NewBlocks(), {"frozen_dtype": "int8"}),
        (NewBlocks(), {"frozen_dtype": "nf4", "precision": "bf16"}),
        (Full(), {}),
        (Full(), {"precision": "bf16"}),
        (LORA, {}),
        (LORA, {"precision": "bf16"}),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_strategy_precision_and_form_is_found_again(
    make_model, grow, store, tmp_path, monkeypatch, strategy, changes, save, dtype
):
    kept = []
    monkeypatch.setattr(saving, "remember", lambda *given: kept.append(remember(*given)) or kept[0])
    from pipeline.training.reload_check import remember

    metrics = train(grow(make_model(dtype)), tmp_path, store, strategy, num_steps=1, save=save, **changes)
    assert metrics["reload_check_s"] > 0
    assert kept[0].loss is not None and kept[0].loss.isfinite() and kept[0].loss > 0


def altered(monkeypatch, change):
    """Have the weights be written as `change` makes them, from {name: Planned}."""
    write_weights = directory.write_weights
    monkeypatch.setattr(
        directory, "write_weights", lambda target, tensors, *rest: write_weights(target, change(tensors), *rest)
    )


def spoilt(tensors, name):
    from dataclasses import replace

    from pipeline.models.files.tensor_file import read_bytes

    planned = tensors[name]
    content = bytearray(read_bytes(planned.content) if hasattr(planned.content, "file") else planned.content)
    content[len(content) // 2] ^= 1  # one bit
    return {**tensors, name: replace(planned, content=bytes(content))}


@pytest.mark.parametrize("save", ["full", "delta"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"])
def test_a_bit_that_was_written_wrong_is_found(make_model, grow, store, tmp_path, monkeypatch, name, save):
    source = grow(make_model("bfloat16"))
    assert "model.layers.2.mlp.up_proj.weight" in read_expansion(source).new_parameters
    altered(monkeypatch, lambda tensors: spoilt(tensors, name))
    with pytest.raises(ValueError, match=rf"(?s)trained.*{name}"):
        train(source, tmp_path, store, num_steps=2, save=save)
    assert (tmp_path / "checkpoints").is_dir()  # from which another try goes on


@pytest.mark.parametrize("save", ["full", "delta"])
def test_a_name_of_a_tied_tensor_that_was_left_behind_is_found(make_model, store, tmp_path, monkeypatch, save):
    fixed = {"model": "llama", "dtype": "bfloat16", "stores": "both", "sharded": False, "bare": False}
    source, _ = layout(make_model, np.random.default_rng(0), tmp_path, referred=False, **fixed)

    def forgetful(*given):
        return {name: tensor for name, tensor in as_stored(*given).items() if name != "lm_head.weight"}

    monkeypatch.setattr(saving, "as_stored", forgetful)
    with pytest.raises(ValueError, match=r"not the one that was trained.*lm_head\.weight"):
        train(source, tmp_path / "run", store, Full(), num_steps=2, save=save)


@pytest.mark.parametrize("change", [{"rms_norm_eps": 0.1}, {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}])
def test_a_config_that_computes_otherwise_is_found(make_model, store, tmp_path, monkeypatch, change):
    commit_model = directory.commit_model

    def wrong(target, config, expansion):
        commit_model(target, json.dumps({**json.loads(config), **change}), expansion)

    monkeypatch.setattr(directory, "commit_model", wrong)
    with pytest.raises(ValueError, match=r"all tensors are equal.*config\.json"):
        train(make_model("bfloat16"), tmp_path, store, Full(), num_steps=2)


def test_a_tensor_that_is_stored_under_no_name_is_refused_before_training(make_model):
    source = make_model()
    model, stored = load(source), read_index(source)
    del stored["model.embed_tokens.weight"]
    trained = dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"would change model\.embed_tokens\.weight"):
        as_stored(model, trained, stored)


def test_adapters_on_a_tied_head_are_refused_and_on_one_apart_are_merged(make_model, store, tmp_path):
    strategy = Lora(4, 8, 0.0, ["lm_head"])
    with pytest.raises(ValueError, match=r"adapts lm_head, whose weight is also model\.embed_tokens\.weight"):
        train(make_model("bfloat16"), tmp_path / "tied", store, strategy, num_steps=1)
    source = make_model("bfloat16", tie_word_embeddings=False)
    train(source, tmp_path / "untied", store, strategy, num_steps=2)
    before, after = (load_file(d / "model.safetensors") for d in (source, tmp_path / "untied" / "model"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"lm_head.weight"}


def test_rows_of_the_check_are_short_and_have_labels():
    def row(first, length=2000):
        labels = np.full(length, -100)
        labels[first:] = 5
        return {"input_ids": np.arange(length), "labels": labels, "position_ids": np.arange(length)}

    empty = {**row(0), "labels": np.full(2000, -100)}
    rows = check_rows(None, {"a": [empty, row(1500), row(1000)], "b": [row(3)]})
    assert [len(one["input_ids"]) for one in rows] == [3 + NUM_TOKENS, 1000 + NUM_TOKENS]
    assert all((one["labels"] != -100).any() for one in rows)
