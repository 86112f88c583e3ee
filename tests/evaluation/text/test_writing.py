"""Text samples against transformers' own greedy generation, and what becomes of prompts that cannot be asked."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from pipeline.evaluation.text.writing import NO_CHAT, Writing
from pipeline.records.items import NUM_WRITTEN, read_texts, write_items

BEGINNINGS, QUESTIONS = ["def grow(", "Zwölf Boxkämpfer jagen"], ["Why?"]


def writing(**changes):
    settings = {"beginnings": BEGINNINGS, "questions": QUESTIONS, "num_tokens": 12, "date": None}
    return Writing(**{**settings, "template_options": {}, **changes})


def greedily(model, tokenizer, ids, ends):
    settings = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=ends, pad_token_id=0)
    ids = torch.tensor([ids])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def test_it_writes_what_transformers_generates(llama, tokenizer, inputs, tmp_path):
    outcome = writing().run(llama, tokenizer, inputs)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = [{"role": "user", "content": "Why?"}]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in BEGINNINGS]
    ids.append(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    expected = [greedily(llama, tokenizer, one, [tokenizer.eos_token_id, end]) for one in ids]
    assert outcome.metric == NUM_WRITTEN and outcome.notes == ()
    assert [item.answer for item in outcome.items] == expected and len(set(expected)) == 3
    assert [item.prompt for item in outcome.items] == BEGINNINGS + QUESTIONS
    assert all(item.numerator <= 12 and item.denominator == 1 for item in outcome.items)
    write_items(outcome, tmp_path)
    kept = read_texts(tmp_path, [item.id for item in outcome.items])
    assert [kept[item.id].answer for item in outcome.items] == expected


def test_what_the_model_cannot_be_asked_is_left_out_and_said(tiny, tokenizer, inputs):
    small = tiny(max_position_embeddings=16)
    outcome = writing(questions=[]).run(small, tokenizer, inputs)
    assert [item.prompt for item in outcome.items] == BEGINNINGS[:1]
    assert outcome.items[0].numerator <= 16 - len("def grow(")
    assert outcome.notes == ("Without 1 prompts that are longer than the model's window.",)
    with pytest.raises(ValueError, match=r"none of 1 prompts can be continued in 16 positions; give some beginnings"):
        writing(beginnings=BEGINNINGS[1:], questions=[]).run(small, tokenizer, inputs)


def test_a_model_without_a_chat_template_only_continues(llama, tokenizer, inputs, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    outcome = writing().run(llama, tokenizer, inputs)
    assert [item.prompt for item in outcome.items] == BEGINNINGS and outcome.notes == (NO_CHAT,)
    with pytest.raises(ValueError, match="questions need a chat template"):
        writing(beginnings=[]).run(llama, tokenizer, inputs)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ({"beginnings": [], "questions": []}, "at least one text is required"),
        ({"questions": [" "]}, "none empty"),
        ({"questions": ["Why?", "Why?"]}, "stands twice"),
        ({"template_options": {"messages": 1}}, "template_options name messages"),
    ],
)
def test_settings_without_sense_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        writing(**changes)
