"""A model is loaded as its files say and decoded as whoever asks says, whatever its generation_config.json wants."""

import json
import shutil

import pytest
import torch

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.plain_decoding import special_tokens

GONE = {
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "dola": {"dola_layers": "high"},
    "constrained": {"force_words_ids": [[5]], "num_beams": 2},
}
ODD = {
    "beams": {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
    "several": {"num_return_sequences": 3},
    "temperature of 0": {"do_sample": True, "temperature": 0.0},
    "penalties": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "lengths": {"max_length": 2, "max_new_tokens": 0},
    "forced": {
        "forced_bos_token_id": 7,
        "forced_eos_token_id": 9,
        "suppress_tokens": [5],
        "begin_suppress_tokens": [6],
    },
    "stops": {"stop_strings": ["a"]},
    "no cache": {"use_cache": False, "cache_implementation": "no such cache"},
    "a watermark": {"watermarking_config": {"bias": 9.0, "seeding_scheme": "none"}},
    "an assistant": {"prompt_lookup_num_tokens": 3, "assistant_confidence_threshold": 2},
    "no special tokens": {"eos_token_id": None, "pad_token_id": None},
    "negative padding": {"pad_token_id": -1},
    "of another program": {"whatever": {"nested": [1]}},
}


def with_settings(source, target, settings):
    shutil.copytree(source, target)
    stated = json.loads((target / "generation_config.json").read_text())
    (target / "generation_config.json").write_text(json.dumps({**stated, **settings}))
    return target


@pytest.mark.parametrize("settings", [*GONE.values(), *ODD.values()], ids=[*GONE, *ODD])
def test_any_generation_settings_are_expanded_and_carried_over(make_model, tmp_path, settings):
    source = with_settings(make_model(), tmp_path / "source", settings)
    found = read_source(source)
    write_expansion(BlockExpansion(2, 1).plan(found), found, tmp_path / "grown")
    proof = verify_identity(source, tmp_path / "grown", num_tokens=16)
    assert proof.exact and proof.dtype == "float32"
    carried, stated = ((one / "generation_config.json").read_bytes() for one in (tmp_path / "grown", source))
    assert carried == stated


@pytest.mark.parametrize("settings", ODD.values(), ids=ODD)
def test_what_a_loaded_model_writes_is_greedy(make_model, tmp_path, settings):
    ids = torch.arange(3, 15)[None]
    model = load(with_settings(make_model(), tmp_path / "source", settings))
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, eos_token_id=None, pad_token_id=0)
    expected = ids
    with torch.no_grad():
        for _ in range(6):
            expected = torch.cat([expected, load(make_model())(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, expected)


def test_special_tokens_are_the_models_own(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": [5, 6], "bos_token_id": 1, "pad_token_id": -1}')
    assert special_tokens(tmp_path) == {"eos_token_id": [5, 6], "bos_token_id": 1}
    (tmp_path / "generation_config.json").write_text('\ufeff{"eos_token_id": 7, "num_beams": 4}', encoding="utf-8")
    assert special_tokens(tmp_path) == {"eos_token_id": 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"eos_token_id": 7', r"generation_config.json is damaged: .*; correct or remove it"),
        ("[1]", "holds list, and must hold a JSON object"),
        ('{"eos_token_id": "</s>"}', r"eos_token_id='</s>' must be a whole number or a list of them"),
        ('{"pad_token_id": [1, 2]}', r"pad_token_id=\[1, 2\] must be a whole number$"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        special_tokens(tmp_path)


def test_weights_of_another_size_are_named_with_both_shapes(make_model, tmp_path):
    shutil.copytree(make_model(), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "vocab_size": 305}))
    with pytest.raises(ValueError, match=r"do not match their config.json: mismatched_keys: .*embed_tokens.*300.*305"):
        load(tmp_path / "model")
