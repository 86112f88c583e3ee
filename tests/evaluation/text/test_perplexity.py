import json
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from pipeline.data.sources.documents import Text
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.evaluation.base import Workspace
from pipeline.evaluation.model.scoring import IGNORED
from pipeline.evaluation.text.passages import by_hash, within
from pipeline.evaluation.text.perplexity import HeldOutText, cut
from pipeline.evaluation.text.windows import windows
from pipeline.models.architecture.tiny import byte_tokenizer

TEXTS = ["def grow(blocks):\n    return blocks + 8\n", "Zwölf Boxkämpfer 🙂🙂 jagen Viktor", "x" * 90, "Short."]


@pytest.fixture
def artifact(tmp_path):
    for name, texts in (("one", TEXTS[:2]), ("two", TEXTS[2:])):
        lines = (json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
        (tmp_path / f"{name}.heldout.jsonl").write_text("".join(lines))
    (tmp_path / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"one": {}, "two": {}}}))
    return tmp_path


@pytest.fixture
def held_out(artifact):
    return Workspace(lambda source: artifact, lambda source: [], artifact)


def benchmark(**changes):
    defaults = {"documents": None, "sources": None, "window": 16, "max_document_tokens": None}
    return HeldOutText(**{**defaults, "max_items": None, "max_tokens": None, **changes})


def bits_by_hand(model, tokens, first, window):
    """Every token from `first` on, one forward pass each over what its window holds before it."""
    total = 0.0
    for i in range(first, len(tokens)):
        start = (i - 1) // window * window
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([tokens[start:i]])).logits[0, -1].double().log_softmax(-1)
        total -= float(logprobs[tokens[i]]) / math.log(2)
    return total


@pytest.mark.parametrize("window", [1, 7, 16, 1000])
def test_windows_sum_to_the_brute_force_score(llama, tokenizer, held_out, window):
    outcome = benchmark(window=window).run(llama, tokenizer, held_out)
    assert sorted(item.id for item in outcome.items) == ["one/0", "one/1", "two/0", "two/1"]
    texts = dict(zip(("one/0", "one/1", "two/0", "two/1"), TEXTS, strict=True))
    for item in outcome.items:
        text = texts[item.id].strip()
        tokens = tokenizer(text)["input_ids"]
        assert item.numerator == pytest.approx(bits_by_hand(llama, tokens, 1, window), rel=1e-6)
        assert item.denominator == len(text.encode()) - 1  # one token a byte: all bytes but the first


def test_all_text_is_scored_where_the_tokenizer_puts_a_beginning(llama, held_out):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    for item in benchmark(window=1000).run(llama, tokenizer, held_out).items:
        text = {"one": TEXTS[:2], "two": TEXTS[2:]}[item.id[:3]][int(item.id[4:])].strip()
        tokens = [1, *byte_tokenizer()(text)["input_ids"]]
        assert item.numerator == pytest.approx(bits_by_hand(llama, tokens, 1, 1000), rel=1e-6)
        assert item.denominator == len(text.encode())


def test_a_first_character_of_several_tokens_is_not_scored_in_part(llama, tokenizer, held_out, artifact):
    (artifact / "one.heldout.jsonl").write_text(json.dumps({"id": "0", "text": "🙂 yes"}) + "\n")
    (item,) = benchmark(sources=["one"]).run(llama, tokenizer, held_out).items
    tokens = tokenizer("🙂 yes")["input_ids"]
    assert item.denominator == len(" yes")
    assert item.numerator == pytest.approx(bits_by_hand(llama, tokens, 4, 16), rel=1e-6)


def test_a_document_is_cut_at_whole_characters(llama, tokenizer, held_out):
    text = "ab🙂cd"
    encoder = TextEncoder(tokenizer)
    assert [cut(encoder, text, n) for n in range(1, 10)] == ["a", "ab", *["ab"] * 3, "ab🙂", "ab🙂c", text, text]
    assert cut(encoder, text, None) == text
    for item in benchmark(max_document_tokens=9).run(llama, tokenizer, held_out).items:
        assert item.denominator <= 8


def test_text_that_spells_a_special_token_is_ordinary_text(llama, tokenizer, held_out, artifact):
    (artifact / "one.heldout.jsonl").write_text(json.dumps({"id": "0", "text": "a<|im_end|>"}) + "\n")
    (item,) = benchmark(sources=["one"]).run(llama, tokenizer, held_out).items
    assert item.denominator == len("<|im_end|>")
    tokens = tokenizer("a<|im_end|>", split_special_tokens=True)["input_ids"]
    assert len(tokens) == 11
    assert item.numerator == pytest.approx(bits_by_hand(llama, tokens, 1, 16), rel=1e-6)


def test_the_choice_of_documents_is_their_contents_alone(llama, tiny, tokenizer, held_out):
    few = benchmark(max_items=2)
    chosen = few.run(llama, tokenizer, held_out).items
    others = few.run(tiny(num_hidden_layers=1), tokenizer, held_out).items
    assert [(a.id, a.hash) for a in chosen] == [(b.id, b.hash) for b in others]
    assert [a.numerator for a in chosen] != [b.numerator for b in others]
    everything = benchmark().run(llama, tokenizer, held_out).items
    assert chosen == everything[:2]
    shuffled = by_hash(reversed([(str(i), text) for i, text in enumerate(TEXTS)]))
    assert shuffled == by_hash((str(i), text) for i, text in enumerate(TEXTS))


def test_budgets_stop_before_they_are_exceeded(llama, tokenizer, held_out):
    lengths = [i.denominator + 1 for i in benchmark().run(llama, tokenizer, held_out).items]
    for budget in (1, int(sum(lengths[:2])), int(sum(lengths[:3])) - 1):
        found = benchmark(max_tokens=budget).run(llama, tokenizer, held_out).items
        assert len(found) == 1 or sum(lengths[: len(found)]) <= budget < sum(lengths[: len(found) + 1])
    assert within([None], 3, None) == []


def test_documents_can_come_from_a_source_of_their_own(llama, tokenizer, inputs, local):
    source = Text(local("rows", [{"text": text} for text in TEXTS]), 1.0, "text", None, None)
    outcome = benchmark(documents=source).run(llama, tokenizer, inputs)
    assert {item.id for item in outcome.items} == {f"rows.jsonl#{i}" for i in range(4)}
    assert (outcome.metric, outcome.higher_is_better) == ("bits_per_byte", False)


def test_requests_that_make_no_sense_are_refused(llama, tokenizer, inputs, held_out):
    with pytest.raises(ValueError, match="window=0"):
        benchmark(window=0)
    with pytest.raises(ValueError, match="give it `data`"):
        benchmark().run(llama, tokenizer, inputs)
    with pytest.raises(ValueError, match="has no three; it has one, two"):
        benchmark(sources=["three"]).run(llama, tokenizer, held_out)


def test_windows_score_each_token_once_and_skip_what_is_not_scored():
    tokens, scored = list(range(10, 30)), [i in (3, 4, 15, 19) for i in range(20)]
    found = list(windows(tokens, scored, 5))
    assert [t for _, targets in found for t in targets if t != IGNORED] == [13, 14, 25, 29]
    assert [inputs for inputs, _ in found] == [[10, 11, 12, 13], [20, 21, 22, 23, 24], [25, 26, 27, 28]]
