"""Tokenising word by word, in one process or several, gives the tokenizer's own ids; and they are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.data.tokens.encoding import Encoding, TokenCache, encode_all
from pipeline.data.tokens.store import open_store, write_store
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.data.tokens.words import WordEncoder, pieces

_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA_3 = _HEAD + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITTERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), BYTES]),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "prefix-space": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "behind": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"(?<=a) |\S+|\s+"), "isolated"), BYTES]),
    "none": None,
}
BY_WORD = {"gpt2", "llama3", "digits"}


def _make(kind):
    backend = Tokenizer(models.BPE(byte_fallback=False))
    if SPLITTERS[kind] is not None:
        backend.pre_tokenizer = SPLITTERS[kind]
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "▁", "\n", "\t"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_texts(np.random.default_rng(1), 300), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: _make(kind) for kind in SPLITTERS}


PARTS = (
    *"abcXYZ019", "the", "def", "return", "it's", "we'LL", "wörd", "ß;", "漢字", "e\u0301", "\U0001f600", "_x", "(",
    "):", ";", "!?", "==", "'", "\u00a0", "\u200b", "\u3000", "\x1c", "\x85", "\x0b", "مرحبا", "½", "<end>", "３",
)  # fmt: skip
SPACES = (
    "",
    "",
    "",
    " ",
    " ",
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\t",
    "\n    ",
    " \n",
    "\r\n",
    "\n \n ",
    "\t\t",
    "   \n\n\n  ",
)


def _texts(draw, num, parts=PARTS):
    return [
        "".join(parts[draw.integers(len(parts))] + SPACES[draw.integers(len(SPACES))] for _ in range(draw.integers(60)))
        for _ in range(num)
    ]


@pytest.mark.parametrize("kind", SPLITTERS)
def test_ids_are_the_tokenizers_own(tokenizers, kind):
    """Of random mixtures of letters, digits, signs, rare spaces and scripts; the half of them in ASCII alone."""
    tokenizer = tokenizers[kind]
    encoder = WordEncoder(tokenizer.backend_tokenizer.to_str())
    assert encoder.by_word == (kind in BY_WORD)
    draw = np.random.default_rng(2)
    plain = tuple(part for part in PARTS if part.isascii())
    texts = ["", " ", "\n", *_texts(draw, 400), *_texts(draw, 400, plain)]
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        expected = TextEncoder(tokenizer).document(text)
        assert ids.tolist() == expected[:-1], repr(text)


def test_every_text_in_order_whether_in_one_process_or_two(tokenizers, monkeypatch):
    texts = _texts(np.random.default_rng(3), 200)
    monkeypatch.setattr("pipeline.data.tokens.encoding._BATCH_CHARS", 500)
    expected = TextEncoder(tokenizers["llama3"]).documents(texts)
    for how in (Encoding(1), Encoding(1, word_cache=False), Encoding(2)):
        found = list(encode_all(tokenizers["llama3"], texts, how))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_long_text_is_cut_where_the_ids_do_not_change(tokenizers, monkeypatch):
    monkeypatch.setattr("pipeline.data.tokens.words._PIECE", 50)
    text = "".join(_texts(np.random.default_rng(4), 40, ("ab", "c;", "\u00e9", "9", "\u00a0", "\x1c", "(")))
    assert len(pieces(text)) > 10 and "".join(pieces(text)) == text
    for kind in BY_WORD:
        (ids,) = WordEncoder(tokenizers[kind].backend_tokenizer.to_str()).encode([text])
        assert ids.tolist() == TextEncoder(tokenizers[kind]).document(text)[:-1]


def test_words_are_forgotten_before_memory_is_full(tokenizers, monkeypatch):
    monkeypatch.setattr("pipeline.data.tokens.words._MOST_WORDS", 30)
    encoder = WordEncoder(tokenizers["gpt2"].backend_tokenizer.to_str())
    texts = _texts(np.random.default_rng(5), 60)
    for text in texts:
        (ids,) = encoder.encode([text])
        assert ids.tolist() == TextEncoder(tokenizers["gpt2"]).document(text)[:-1]


def test_a_tokenizer_that_is_not_what_it_seems_is_found_out(tokenizers):
    encoder = WordEncoder(tokenizers["gpt2"].backend_tokenizer.to_str())
    encoder._known[" the"] = np.array([1], dtype=np.uint32).tobytes()
    with pytest.raises(ValueError, match=r"not those of its words; set launch\.word_cache=false"):
        encoder.encode(["of the end"])


def test_added_tokens_and_dropout_are_respected(tokenizers):
    stated = json.loads(tokenizers["llama3"].backend_tokenizer.to_str())
    stated["model"]["dropout"] = 0.1
    assert not WordEncoder(json.dumps(stated)).by_word
    stated["model"]["dropout"] = None
    token = {**stated["added_tokens"][0], "id": 900, "content": "two words", "special": False}
    assert not WordEncoder(json.dumps({**stated, "added_tokens": [*stated["added_tokens"], token]})).by_word
    stated["added_tokens"].append({**token, "content": "<call>"})
    encoder, backend = WordEncoder(json.dumps(stated)), Tokenizer.from_str(json.dumps(stated))
    texts = _texts(np.random.default_rng(6), 200, (*PARTS, "<call>", "<call", "call>"))
    assert encoder.by_word and any("<call>" in text for text in texts)
    backend.encode_special_tokens = True
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert ids.tolist() == backend.encode(text, add_special_tokens=False).ids


def test_tokens_are_kept_by_content_and_tokenizer(tokenizers, tmp_path):
    cache, tokenizer = TokenCache(tmp_path / "cache"), tokenizers["gpt2"]
    texts = ["one text", "and another"]
    key = cache.key(tokenizer, (text.encode() for text in texts), 700)
    assert key != cache.key(tokenizer, [b"one text", b"and anothe", b"r"], 700)
    assert key != cache.key(tokenizers["llama3"], (text.encode() for text in texts), 700)
    assert key != cache.key(tokenizer, (text.encode() for text in texts), 701)
    for directory in (tmp_path / "a", tmp_path / "b"):
        directory.mkdir()
    assert not cache.fetch(key, tmp_path / "a", "s")
    write_store(tmp_path / "a", "s", ((ids, None) for ids in TextEncoder(tokenizer).documents(texts)), len(tokenizer))
    cache.keep(key, tmp_path / "a", "s")
    cache.keep(key, tmp_path / "a", "s")
    assert cache.fetch(key, tmp_path / "b", "other")
    kept, own = open_store(tmp_path / "b", "other"), open_store(tmp_path / "a", "s")
    assert np.array_equal(kept.tokens, own.tokens) and np.array_equal(kept.offsets, own.offsets)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [key]
    write_store(tmp_path / "b", "other", [(np.array([1, 2, 3]), None)], len(tokenizer))
    assert cache.fetch(key, tmp_path / "a", "s") and len(open_store(tmp_path / "a", "s").tokens) == len(kept.tokens)


@pytest.fixture
def cached(tokenizers, tmp_path):
    """A cache with one entry, and the artifact that it was made from: (cache, key, artifact's directory)."""
    cache, tokenizer, texts = TokenCache(tmp_path / "cache"), tokenizers["gpt2"], ["one text", "and another"]
    (tmp_path / "a").mkdir()
    write_store(tmp_path / "a", "s", ((ids, None) for ids in TextEncoder(tokenizer).documents(texts)), len(tokenizer))
    key = cache.key(tokenizer, (text.encode() for text in texts), 700)
    cache.keep(key, tmp_path / "a", "s")
    return cache, key, tmp_path / "a"


def test_an_artifact_altered_in_place_does_not_reach_what_is_kept(cached, tmp_path):
    cache, key, artifact = cached
    path = artifact / "s.tokens.npy"
    before = path.read_bytes()
    with path.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    (tmp_path / "b").mkdir()
    assert cache.fetch(key, tmp_path / "b", "s") and (tmp_path / "b" / "s.tokens.npy").read_bytes() == before
    with (tmp_path / "b" / "s.tokens.npy").open("r+b") as stream:
        stream.write(b"\xff")
    assert cache.fetch(key, artifact, "s") and path.read_bytes() == before


@pytest.mark.parametrize("name", ["kept.tokens.npy", "kept.offsets.npy", "sha256.json"])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_an_entry_that_is_not_what_was_kept_counts_as_none_and_is_replaced(cached, tmp_path, name, damage):
    cache, key, artifact = cached
    path = tmp_path / "cache" / key / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    (tmp_path / "b").mkdir()
    assert not cache.fetch(key, tmp_path / "b", "s") and not list((tmp_path / "b").iterdir())
    cache.keep(key, artifact, "s")
    assert cache.fetch(key, tmp_path / "b", "s")
    assert (tmp_path / "b" / "s.tokens.npy").read_bytes() == (artifact / "s.tokens.npy").read_bytes()
