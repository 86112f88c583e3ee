"""One text has one encoding: in training, as a document that is scored, a prompt, a pair, a conversation."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.data.tokens.encoding import Encoding, encode_all
from pipeline.data.tokens.special_tokens import SpecialTokens
from pipeline.data.tokens.text_encoder import TextEncoder
from tests.data.tokenizers_of_kinds import AROUND, CUTS, make

WORDS = ["How many", " blocks", "\n    return x", "Forty.", "a", "7", " ", "\n", "é", "🙂", "▁"]
PARTS = [*WORDS, "<s>", "</s>", "[SEP]", "<pad>"]
DOCUMENT = [("bos", [1]), ("eos", []), ("both", [1]), ("none", []), ("several", [5, 1]), ("eos before", [2])]


def texts(rng, count):
    return ["".join(rng.choices(PARTS, k=rng.randint(0, 9))) for _ in range(count)]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("cut", CUTS)
def test_what_a_tokenizer_puts_around_a_text_is_found(around, cut):
    found = SpecialTokens.of(make(around, cut))
    assert (list(found.prefix), list(found.suffix)) == AROUND[around][1:]


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_eos_token": True}, {"add_bos_token": False}])
def test_flags_count_as_far_as_the_tokenizer_heeds_them(flags):
    tokenizer = make("none", **flags)
    found = SpecialTokens.of(tokenizer)
    assert [*found.prefix, 9, *found.suffix] == [
        *([1] if flags.get("add_bos_token") else []), 9, *([2] if flags.get("add_eos_token") else [])
    ]  # fmt: skip
    tokenizer.add_bos_token = True
    assert SpecialTokens.of(tokenizer).prefix == (1,)


def test_a_saved_tokenizer_is_what_it_was(tmp_path):
    make("both").save_pretrained(tmp_path)
    assert SpecialTokens.of(AutoTokenizer.from_pretrained(tmp_path)) == SpecialTokens((1,), (2,), 2)


def test_a_tokenizer_of_few_letters_is_told_by_its_own():
    backend = Tokenizer(models.BPE({"<s>": 0, "ß": 1}, []))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert SpecialTokens.of(tokenizer).prefix == (0,)
    backend.post_processor = processors.TemplateProcessing(single="ß $A ß", special_tokens=[("ß", 1)])
    with pytest.raises(ValueError, match="correct the post_processor"):
        SpecialTokens.of(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize(("around", "prefix"), DOCUMENT)
def test_a_document_has_the_tokenizers_beginning_and_one_end(around, prefix):
    tokenizer = make(around)
    text = "How many blocks?"
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert TextEncoder(tokenizer).document(text) == [*prefix, *own, 2]
    assert TextEncoder(tokenizer).prompt(text) == [*prefix, *own]
    assert TextEncoder(tokenizer).continuation(text) == own


def test_what_stands_behind_a_text_and_is_not_eos_stays_before_it():
    tokenizer = make("cls")
    assert TextEncoder(tokenizer).document("")[1:] == [4, 2]
    assert TextEncoder(make("cls", eos_token="[SEP]")).document("") == [3, 4]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("cut", CUTS)
def test_training_and_evaluation_agree_on_any_text(around, cut):
    rng = random.Random(f"{around} {cut}")
    tokenizer = make(around, cut, added=["<pad>"])
    encoder, (prefix, suffix) = TextEncoder(tokenizer), AROUND[around][1:]
    end = [*(token for token in suffix if token != 2), 2]
    found = texts(rng, 60)
    trained = [ids.tolist() for ids in encode_all(tokenizer, found, Encoding())]
    assert trained == encoder.documents(found)
    assert trained == [ids.tolist() for ids in encode_all(tokenizer, found, Encoding(word_cache=False))]
    for text, ids in zip(found, trained, strict=True):
        scored, spans = encoder.spans(text)
        assert [*prefix, *scored, *end] == ids == encoder.document(text)
        assert encoder.prompt(text) == ids[: len(ids) - len(end)] == [*prefix, *encoder.continuation(text)]
        assert len(spans) == len(scored)
        assert not {1, 2, 3, 4, 5} & set(scored)  # text that spells a special token is text


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("cut", CUTS)
def test_a_pair_is_the_whole_divided(around, cut):
    rng = random.Random(f"pair {around} {cut}")
    encoder, prefix = TextEncoder(make(around, cut)), AROUND[around][1]
    divided = 0
    for context, option in zip(texts(rng, 80), texts(rng, 80), strict=True):
        if not (context.rstrip() + option + context).strip() or not encoder.continuation(option):
            continue
        before, after = encoder.pair(context, option)
        assert after and not (before[-1:] == [2] and prefix != [2] and context.strip())
        whole = encoder.prompt(context + option)
        if context.rstrip():
            assert before == encoder.prompt(context.rstrip())
        if whole[: len(before)] == before and len(whole) > len(before):
            divided += 1
            assert before + after == whole
    assert divided > 30


def test_a_token_that_spans_context_and_option_leaves_the_option_its_own_ids():
    encoder = TextEncoder(make("both"))
    assert len(encoder.continuation(" blocks")) == 1
    before, after = encoder.pair(" bl", "ocks")
    assert before == encoder.prompt(" bl") and after == encoder.continuation("ocks")


@pytest.mark.parametrize(("around", "expected"), [("bos", [1]), ("several", [5, 1]), ("none", [1]), ("eos", [1])])
def test_a_text_without_a_context_follows_what_a_text_begins_with(around, expected):
    encoder = TextEncoder(make(around))
    for context in ("", "  "):
        before, after = encoder.pair(context, "Forty.")
        assert before == expected and after == encoder.continuation(context + "Forty.")
    assert TextEncoder(make("none", bos_token=None)).before_text == (2,)
    with pytest.raises(ValueError, match="neither bos_token nor eos_token"):
        TextEncoder(make("none", bos_token=None, eos_token=None)).pair("", "x")


def test_an_option_without_a_token_is_refused():
    for context in ("", "How many"):
        with pytest.raises(ValueError, match=r"the text '' .* has no token, so it cannot be scored"):
            TextEncoder(make("bos")).pair(context, "")


def test_truncation_and_padding_saved_with_a_tokenizer_change_no_id(tmp_path):
    tokenizer = make("both")
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    tokenizer.save_pretrained(tmp_path)
    text = "How many blocks has the grown model?"
    expected = TextEncoder(make("both")).document(text)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert TextEncoder(loaded).document(text) == expected
    assert [ids.tolist() for ids in encode_all(loaded, [text], Encoding(word_cache=False))] == [expected]
    assert np.concatenate(list(encode_all(loaded, [text], Encoding()))).tolist() == expected


@pytest.mark.parametrize("around", AROUND)
def test_a_conversation_has_what_its_template_writes(around):
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer = make(around, chat_template=template)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Forty."}], tokenize=True, return_dict=True)
    assert list(ids["input_ids"]) == [1, *TextEncoder(tokenizer).continuation("Forty."), 2]
