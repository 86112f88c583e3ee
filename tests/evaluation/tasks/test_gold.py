"""The loss of right answers, against forward passes written out by hand."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
import torch

from pipeline.evaluation.base import gold_scores
from pipeline.evaluation.remote.completions import RemoteLM
from pipeline.evaluation.remote.endpoint import UnusableError
from pipeline.evaluation.tasks.gold import ScoredOption, gold_loss, num_answer_bytes
from pipeline.evaluation.tasks.harness import HarnessTask
from pipeline.evaluation.tasks.labels import LabelledOptions
from pipeline.evaluation.tasks.loglikelihood import EncodedHFLM, SharedPrefixLM
from pipeline.records.gold import GoldLoss

PLAIN = {"filter": None, "num_fewshot": None, "until": None, "average": "documents", "limit": None}
PLAIN |= {"adapter": "none", "revision": None}


@pytest.fixture
def task(local):
    def make(task, metric, rows, split="validation", **changes):
        splits = {split: local(task.replace("/", "-"), rows)}
        return HarnessTask(**{**PLAIN, "task": task, "metric": metric, "splits": splits, **changes})

    return make


def bits_by_hand(model, tokenizer, context, text):
    """-log2 of the probability of a text after a context, from the whole logits of one plain pass."""
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (context, text))
    ids = torch.tensor([before + after])
    with torch.inference_mode():
        logprobs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    picked = [logprobs[len(before) - 1 + place, token].item() for place, token in enumerate(after)]
    return -math.fsum(picked) / math.log(2)


def test_options_by_hand():
    ln2 = math.log(2)
    options = [ScoredOption(" zwölf", -6 * ln2), ScoredOption("no", -4 * ln2), ScoredOption("a", -9 * ln2)]
    assert gold_loss(options, [0]) == GoldLoss(pytest.approx(6), 6, pytest.approx(-2))  # ö has two bytes
    assert gold_loss(options, [1]) == GoldLoss(pytest.approx(4), 2, pytest.approx(2))
    assert gold_loss(options, [0]).bits_per_byte == pytest.approx(1)
    several = gold_loss(options, [0, 2])  # the mean loss; the margin is that of the better one
    assert several == GoldLoss(pytest.approx(7.5), 3.5, pytest.approx(-2))
    assert gold_loss(options[:1], [0]) == GoldLoss(pytest.approx(6), 6, None)
    assert gold_loss(options, []) is None
    assert gold_loss([ScoredOption("a", -math.inf), options[1]], [0]) is None
    assert gold_loss([options[1], ScoredOption("a", -math.inf)], [0]) == GoldLoss(pytest.approx(4), 2, None)


def test_the_margin_ranks_options_as_the_metric_does():
    """By length the longer option wins, though its sum is smaller: the margin is at the right one's length."""
    ln2 = math.log(2)
    long, short = ScoredOption("ten letter", -10 * ln2, 10), ScoredOption("four", -8 * ln2, 4)
    assert gold_loss([long, short], [0]).margin_bits == pytest.approx(-10 + 8 / 4 * 10)
    assert gold_loss([long, short], [1]).margin_bits == pytest.approx(-8 + 10 / 10 * 4)


@pytest.mark.parametrize(("text", "size"), [("a", 1), (" a", 1), ("é", 2), ("🙂", 4), ("a ", 2), ("\n\n", 2), ("", 1)])
def test_bytes_of_an_answer(text, size):
    assert num_answer_bytes(text) == size


def test_a_multi_token_option_has_its_loss_by_hand(task, llama, tokenizer, inputs):
    rows = [{"goal": f"Lift {i}", "sol1": "use a rope", "sol2": "größer 🙂", "label": i % 2} for i in range(4)]
    items = task("piqa/piqa", "acc_norm", rows).run(llama, tokenizer, inputs).items
    assert len(items) == 4
    for item, row in zip(items, rows, strict=True):
        texts = [row["sol1"], row["sol2"]]
        losses = [bits_by_hand(llama, tokenizer, f"Question: Lift {item.id}\nAnswer:", f" {text}") for text in texts]
        right, wrong = row["label"], 1 - row["label"]
        assert item.gold_loss.bits == pytest.approx(losses[right], rel=1e-5)
        assert item.gold_loss.num_bytes == len(texts[right].encode())
        margin = losses[wrong] / len(texts[wrong]) * len(texts[right]) - losses[right]
        assert item.gold_loss.margin_bits == pytest.approx(margin, rel=1e-4, abs=1e-4)
        assert (item.gold_loss.margin_bits > 0) == (item.numerator == 1)


def test_of_winogrande_the_words_after_the_right_option_are_scored(task, llama, tokenizer, inputs):
    sentence = "The {} did not fit because _ was big."
    rows = [
        {"sentence": sentence.format(f"cup {i}"), "option1": "it", "option2": "the box", "answer": str(1 + i % 2)}
        for i in range(4)
    ]
    for item, row in zip(
        task("winogrande/default", "acc", rows).run(llama, tokenizer, inputs).items, rows, strict=True
    ):
        before = row["sentence"].partition("_")[0]
        by_option = [bits_by_hand(llama, tokenizer, before + row[f"option{n}"], " was big.") for n in (1, 2)]
        right = int(row["answer"]) - 1
        assert item.gold_loss.bits == pytest.approx(by_option[right], rel=1e-5)
        assert item.gold_loss.num_bytes == len("was big.")
        assert item.gold_loss.margin_bits == pytest.approx(by_option[1 - right] - by_option[right], abs=1e-3)
        assert (item.gold_loss.margin_bits > 0) == (item.numerator == 1)


def test_of_lambada_the_last_word_is_scored_and_there_is_no_margin(task, llama, tokenizer, inputs):
    rows = [{"text": "She walked home and closed the dööř"}]
    (item,) = task("lambada/lambada_openai", "acc", rows, "test").run(llama, tokenizer, inputs).items
    bits = bits_by_hand(llama, tokenizer, "She walked home and closed the", " dööř")
    assert item.gold_loss == GoldLoss(pytest.approx(bits, rel=1e-5), len("dööř".encode()), None)


def test_of_truthfulqa_the_true_answers_are_scored(task, llama, tokenizer, inputs):
    one = {"choices": ["Yes.", "No.", "I have no comment."], "labels": [1, 0, 0]}
    many = {"choices": ["Perhaps.", "No, never.", "Yes."], "labels": [0, 1, 1]}
    rows = [{"question": "Is it?", "mc1_targets": one, "mc2_targets": many}]
    (first,) = task("truthfulqa/truthfulqa_mc1", "acc", rows).run(llama, tokenizer, inputs).items
    (item,) = task("truthfulqa/truthfulqa_mc2", "acc", rows).run(llama, tokenizer, inputs).items
    losses = [bits_by_hand(llama, tokenizer, item.prompt, f" {text}") for text in many["choices"]]
    assert item.gold_loss.bits == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    assert item.gold_loss.num_bytes == (len("No, never.") + len("Yes.")) / 2
    assert item.gold_loss.margin_bits == pytest.approx(losses[0] - min(losses[1:]), abs=1e-3)
    yes = bits_by_hand(llama, tokenizer, first.prompt, " Yes.")
    assert (first.gold_loss.bits, first.gold_loss.num_bytes) == (pytest.approx(yes, rel=1e-5), 4)


def test_of_mmlu_the_letter_is_scored(task, llama, tokenizer, inputs):
    rows = [{"question": "Which?", "subject": "disputes", "choices": list("wxyz"), "answer": 2}]
    asked = task("mmlu/default/mmlu_moral_disputes", "acc", rows, "test", num_fewshot=0)
    (item,) = asked.run(llama, tokenizer, inputs).items
    losses = [bits_by_hand(llama, tokenizer, item.prompt, f" {letter}") for letter in "ABCD"]
    assert item.gold_loss.bits == pytest.approx(losses[2], rel=1e-5) and item.gold_loss.num_bytes == 1
    assert item.gold_loss.margin_bits == pytest.approx(min(losses[:2] + losses[3:]) - losses[2], abs=1e-3)


def test_labels_have_the_mean_loss_of_the_right_ones(local, llama, tokenizer, inputs):
    options = ["Unilateral change", "Arbitration", "none"]
    rows = [{"input": f"Terms {i}. Label:", "options": options, "gold_index": [0, 1] if i else 2} for i in range(2)]
    outcome = LabelledOptions({"test": local("labels", rows)}, None).run(llama, tokenizer, inputs)
    for item, row in zip(outcome.items, rows, strict=True):
        losses = [bits_by_hand(llama, tokenizer, row["input"], f" {text}") for text in options]
        right = row["gold_index"] if isinstance(row["gold_index"], list) else [row["gold_index"]]
        assert item.gold_loss.bits == pytest.approx(sum(losses[i] for i in right) / len(right), rel=1e-5)
        assert item.gold_loss.num_bytes == sum(len(options[i]) for i in right) / len(right)
        assert (item.gold_loss.margin_bits > 0) == (item.numerator == 1)


class Quick(SharedPrefixLM):
    """Writes the same answer to every question, without a pass."""

    def generate_until(self, requests, disable_tqdm=True):
        return ["It is 4.\n#### 4"] * len(requests)


GSM8K = [{"question": f"{i} and {i} kites?", "answer": f"{i}+{i} makes it\n#### {2 * i}"} for i in range(5)]
WRITTEN = {"filter": "flexible-extract", "num_fewshot": 2}


@pytest.fixture
def gsm8k(local):
    shots = [{"question": "One and one?", "answer": "It is 1+1.\n#### 2"}] * 9
    splits = {"test": local("gsm8k", GSM8K), "train": local("shots", shots)}
    return HarnessTask(**{**PLAIN, **WRITTEN, "task": "gsm8k/gsm8k", "metric": "exact_match", "splits": splits})


def test_of_a_written_answer_the_solution_is_scored_as_the_examples_spell_it(gsm8k, llama, tokenizer, inputs):
    outcome = gsm8k.score(Quick(llama, tokenizer, lambda **_: None), inputs)
    assert [item.numerator for item in outcome.items] == [0, 0, 1, 0, 0]
    for item, row in zip(outcome.items, GSM8K, strict=True):
        assert item.prompt.endswith("kites?\nAnswer:") and "It is" in item.prompt
        bits = bits_by_hand(llama, tokenizer, item.prompt, f" {row['answer']}")
        assert item.gold_loss == GoldLoss(pytest.approx(bits, rel=1e-5), len(row["answer"]), None)
    mean = sum(item.gold_loss.bits_per_byte for item in outcome.items) / 5
    assert gold_scores(outcome)["gold_bits_per_byte"] == pytest.approx(mean)


def test_the_pass_over_written_answers_runs_common_examples_once(gsm8k, llama, tokenizer, inputs):
    lm = Quick(llama, tokenizer, lambda **_: None)
    items = gsm8k.score(lm, inputs).items
    texts = [f"{item.prompt} {row['answer']}" for item, row in zip(items, GSM8K, strict=True)]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert min(lengths) < lm.tokens_run < 0.6 * sum(lengths)


def test_a_server_without_logprobs_scores_the_task_and_says_what_is_missing(gsm8k, llama, tokenizer, inputs):
    class Mute(Quick):
        unscored = RemoteLM.unscored

        def loglikelihood(self, requests, disable_tqdm=True):
            raise UnusableError("the reply echoes no log-probabilities of the prompt")

    outcome = gsm8k.score(Mute(llama, tokenizer, lambda **_: None), inputs)
    assert [item.numerator for item in outcome.items] == [0, 0, 1, 0, 0]
    assert outcome.lacks_gold and all(item.gold_loss is None for item in outcome.items)
    assert "echoes no log-probabilities" in outcome.notes[0]
    assert gold_scores(outcome) == {"gold_bits_per_byte": None, "gold_bits_per_byte_stderr": None}


def test_an_answer_longer_than_the_window_has_no_loss_and_stops_nothing(local, tiny, tokenizer, inputs):
    model = tiny(max_position_embeddings=400)
    rows = [GSM8K[0], {"question": "Long?", "answer": "so " * 200 + "\n#### 1"}]
    splits = {"test": local("long", rows)}
    options = {"task": "gsm8k/gsm8k", "metric": "exact_match", "splits": splits, "num_fewshot": 0}
    asked = HarnessTask(**{**PLAIN, **WRITTEN, **options})
    items = asked.score(Quick(model, tokenizer, lambda **_: None), inputs).items
    assert [item.gold_loss is None for item in items] == [False, True]


def test_scores_of_right_answers_are_means_over_items(task, llama, tokenizer, inputs):
    rows = [{"goal": f"Lift {i}", "sol1": "a" * (i + 1), "sol2": "no", "label": 0} for i in range(3)]
    outcome = task("piqa/piqa", "acc", rows).run(llama, tokenizer, inputs)
    losses = [item.gold_loss.bits / (i + 1) for i, item in enumerate(outcome.items)]
    found = gold_scores(outcome)
    assert found["gold_bits_per_byte"] == pytest.approx(fmean(losses))
    assert found["gold_bits_per_byte_stderr"] == pytest.approx(stdev(losses) / math.sqrt(3))
    margins = [item.gold_loss.margin_bits / (i + 1) for i, item in enumerate(outcome.items)]
    assert found["gold_margin_bits_per_byte"] == pytest.approx(fmean(margins))


def test_hflm_gives_the_same_losses(task, llama, tokenizer, inputs):
    rows = [{"goal": f"Lift {i}", "sol1": "use a rope", "sol2": "größer", "label": i % 2} for i in range(3)]
    asked = task("piqa/piqa", "acc", rows)
    fast, slow = asked.run(llama, tokenizer, inputs), asked.score(EncodedHFLM(llama, tokenizer), inputs)
    for a, b in zip(fast.items, slow.items, strict=True):
        assert a.gold_loss.bits == pytest.approx(b.gold_loss.bits, rel=1e-5)
        assert a.gold_loss.num_bytes == b.gold_loss.num_bytes
