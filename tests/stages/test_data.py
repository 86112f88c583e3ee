from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.data.corpus import read_sources
from pipeline.data.prepared import validation_rows
from pipeline.data.tokens.store import open_store
from stages import data as stage
from tests.data.tokenizers_of_kinds import make
from tests.stages.requests import request

CONF = Path(__file__).parents[2] / "conf" / "data"


def _params(name="local_text", **changes):
    """Params as the engine gives them: a local source is known by its content."""
    loaded = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    for entry in loaded["sources"].values():
        origin = entry.get("origin", entry)  # of images, what reads them stands alone
        source = origin.get("source", {})  # none of what is made up
        if source.get("kind") == "local":
            origin["source"] = {"kind": "local", "content": "0" * 64}
        elif source.get("repo") == "???":
            source["repo"] = "org/texts"
    for key in ("domains", "task"):  # for the groups of benchmarks, and for paths of the section
        loaded.pop(key, None)
    return {"data": {**loaded, **changes}}


def _save_tokenizer(directory):
    words = ["<|im_end|>", "<unk>", *(f"w{number}" for number in range(200))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<unk>")
    tokenizer.save_pretrained(directory)


def _save_embedding(directory, num_rows):
    save_file({"model.embed_tokens.weight": np.zeros((num_rows, 1), np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"vocab_size": num_rows}))


@pytest.fixture
def context(tmp_path):
    base, texts, out = (tmp_path / name for name in ("base", "texts", "out"))
    for directory in (base / "model", texts, out):
        directory.mkdir(parents=True)
    _save_tokenizer(base / "model")
    _save_embedding(base / "model", 202)
    (base / "manifest.json").write_text("{}")
    for number in range(60):
        (texts / f"{number}.txt").write_text(" ".join(f"w{(number * 7 + place * number) % 199}" for place in range(40)))
    return SimpleNamespace(
        directory=out,
        inputs={"base": base},
        params=_params(),
        is_main=True,
        launch={"threads": 1, "word_cache": True, "token_cache": str(tmp_path / "tokens")},
        locate=lambda source: texts,
        listing=lambda source: sorted(path.name for path in texts.iterdir()),
        progress=lambda **fields: None,
    )


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_passes_the_check(path):
    warnings.simplefilter("ignore")
    assert stage.forecast(request(_params(path.stem))).facts["sources"]


def test_a_revision_that_may_move_is_said_and_resolved():
    params = _params("freelaw")
    with pytest.warns(UserWarning, match="the-pile-splitted at revision 'main', which may move"):
        stage.forecast(request(params))
    with pytest.raises(ValueError, match="the-pile-splitted at revision main could not be downloaded"):
        stage._pinned(params)
    pinned = _params("llama_pro_pretrain")
    assert stage._pinned(pinned) == (pinned, {})


def test_the_check_names_what_is_wrong():
    held_out = {
        "_target_": "pipeline.data.clean.split.HeldOut",
        "bytes": 1,
        "fraction": 0.1,
        "threshold": 0.5,
        "seed": 1,
    }
    with pytest.raises(ValueError, match="one of bytes and fraction"):
        stage.forecast(request(_params(held_out=held_out)))
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        stage.forecast(request(_params(sources={})))
    with pytest.raises(ValueError, match="seed is not a setting of TextData; it has sources, "):
        stage.forecast(request(_params(seed=1)))
    with pytest.raises(
        ValueError, match=r"TextData, pipeline\.data\.chats\.ChatData or pipeline\.data\.images\.ImageData"
    ):
        stage.forecast(request({"data": held_out | {"fraction": None}}))


def test_the_check_needs_no_torch():
    code = (
        "import sys; from stages import data; from pipeline.engine.run.forecast import Request; "
        f"data.forecast(Request({_params('python_and_math')!r})); "
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONF.parents[1])


def test_the_stage_writes_its_artifact(context):
    metrics = stage.run(context)
    assert json.loads(json.dumps(metrics)) == metrics
    entry = read_sources(context.directory)["sources"]["local"]
    store = open_store(context.directory, "local")
    assert metrics["tokens"] == entry["tokens"] == len(store.tokens) == 41 * entry["documents"]
    assert entry["documents"] + entry["held_out_documents"] == 60
    names = {path.name for path in context.directory.iterdir()}
    assert names == {
        "sources.json",
        "rejected.jsonl",
        *(f"local.{part}" for part in ("tokens.npy", "offsets.npy", "ids.jsonl", "heldout.jsonl")),
    }


def test_only_the_first_rank_writes(context):
    context.is_main = False
    assert stage.run(context) == {}
    assert not list(context.directory.iterdir())


@pytest.mark.parametrize(("around", "prefix"), [("none", []), ("bos", [1]), ("eos", []), ("both", [1])])
def test_documents_begin_as_the_tokenizer_begins_and_end_once(context, around, prefix):
    tokenizer = make(around)
    tokenizer.save_pretrained(context.inputs["base"] / "model")
    _save_embedding(context.inputs["base"] / "model", 512)
    stage.run(context)
    store = open_store(context.directory, "local")
    for start, stop in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        ids = store.tokens[start:stop].tolist()
        text = tokenizer.decode([token for token in ids if token > 5])
        assert ids == [*prefix, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    held = json.loads((context.directory / "local.heldout.jsonl").read_text().splitlines()[0])["text"]
    (row,) = validation_rows(context.directory, tokenizer, 512, 1)["local"]
    ids = [*prefix, *tokenizer(held, add_special_tokens=False)["input_ids"], 2]
    assert row["input_ids"][: len(ids)].tolist() == ids


def test_tokens_without_a_row_stop_the_stage_before_anything_trains(context):
    _save_embedding(context.inputs["base"] / "model", 100)
    with pytest.raises(
        ValueError, match=r"document '.*', holds the token 'w\d+' \(id \d+\), .* embedding has 100 rows"
    ):
        stage.run(context)
    _save_embedding(context.inputs["base"] / "model", 1 << 17)
    stage.run(context)  # what is kept of another embedding is of no use here
    assert open_store(context.directory, "local").tokens.dtype == np.uint32
    assert read_sources(context.directory)["vocab_size"] == 1 << 17
