"""Damaged or mixed-up model directories, refused before anything is loaded."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.models import load_tokenizer
from pipeline.models.agreement import check_directory
from tests.data.tokenizers_of_kinds import make


@pytest.fixture
def model(make_model, tmp_path):
    """A sound model with a tokenizer, which a test may damage."""
    directory = shutil.copytree(make_model(), tmp_path / "model")
    make("bos").save_pretrained(directory)
    check_directory(directory)
    return directory


def change(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"],
)
@pytest.mark.parametrize(("content", "found"), [("{", "is damaged: Expecting"), ("[]", "holds list, and must hold")])
def test_a_damaged_file_is_named(model, name, content, found):
    (model / name).write_text(content)
    with pytest.raises(ValueError, match=rf"model/{name} {found}.*again$"):
        check_directory(model)


def test_a_tokenizer_and_templates_that_are_none(model):
    (model / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is damaged: 'utf-8' codec .* copy the model's again"):
        check_directory(model)
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no tokenizer: it has no key 'model'"):
        load_tokenizer(model)
    (model / "tokenizer.json").write_text('{"model": {"type": "none"}}')
    with pytest.raises(ValueError, match=r"cannot read the tokenizer in .*model: .* copy the tokenizer's files"):
        load_tokenizer(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 96}, r"says hidden_size=96, but its weights have \d+ \(model.embed_tokens.weight is \d+ x"),
        ({"vocab_size": 5}, r"says vocab_size=5, but its weights have"),
        ({"intermediate_size": 7}, r"says intermediate_size=7, but its weights have .*up_proj"),
        ({"num_attention_heads": 1, "head_dim": 4}, r"says num_attention_heads=1, but its weights have .*q_proj"),
        ({"num_hidden_layers": 3}, r"says num_hidden_layers=3, but its weights have 4 blocks; put the config.json"),
        ({"num_hidden_layers": 5}, r"says num_hidden_layers=5, but its weights have 4 blocks"),
        ({"model_type": "lllama"}, r"model_type='lllama', which .* does not know; did you mean llama or"),
        ({"model_type": None}, "model_type=None, which the installed transformers does not know"),
    ],
)
def test_a_config_of_another_model_is_refused_with_what_differs(model, changes, message):
    change(model, **changes)
    with pytest.raises(ValueError, match=message):
        check_directory(model)


def test_a_record_of_more_blocks_than_there_are(model):
    block = {"position": 4, "origin": 3, "round": 1}
    record = {"method": "block", "blocks": [block], "new_parameters": ["model.layers.4.mlp.up_proj.weight"]}
    (model / "expansion.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"expansion\.json tells of a block 4, .* num_hidden_layers=4"):
        check_directory(model)


@pytest.mark.parametrize(
    "family", ["mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmo2", "qwen3_moe", "mixtral", "gpt2"]
)
def test_sound_models_of_many_families_pass(make_model, tmp_path, family):
    small = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    sizes = small if family in ("qwen3_moe", "mixtral") else {}
    directory = shutil.copytree(make_model(model_type=family, pad_token_id=0, **sizes), tmp_path / "model")
    make("bos").save_pretrained(directory)
    check_directory(directory)
