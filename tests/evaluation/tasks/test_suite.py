"""The paper's suite: few-shot prompts, subtasks, generated answers and labels, each equal to lm-evaluation-harness."""

import re

import datasets
import numpy as np
import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from pipeline.data.sources.documents import HubDataset
from pipeline.evaluation.base import score
from pipeline.evaluation.tasks.harness import HarnessTask
from pipeline.evaluation.tasks.labels import LabelledOptions, macro_f1, macro_f1_stderr
from pipeline.evaluation.tasks.rows import Mirror, read_rows

NOUNS = ["river", "stone", "Anna", "Bob", "the old tree", "seven", "a kite", "green", "würfel"]
SUBJECTS = ["disputes", "scenarios"]  # the two MMLU subjects whose names begin with moral_


def arc_rows(start, count):
    for number in range(start, start + count):
        choices = {"text": [NOUNS[(number * 3 + i) % 9] for i in range(4)], "label": list("ABCD")}
        yield {
            "question": f"What is {NOUNS[number % 9]} {number}?",
            "choices": choices,
            "answerKey": "ABCD"[number % 4],
        }


def mmlu_rows(start, count):
    for number in range(start, start + count):
        choices = [f"{NOUNS[(number + i) % 9]} {number}" for i in range(4)]
        yield from (
            {"question": f"{subject} {number}?", "subject": subject, "choices": choices, "answer": number % 4}
            for subject in SUBJECTS[: 1 + (number % 3 > 0)]
        )


def gsm8k_rows(start, count):
    for number in range(start, start + count):
        yield {"question": f"{number} and {number} kites?", "answer": f"{number}+{number}\n#### {2 * number}"}


def truthfulqa_rows(count):
    for number in range(count):
        targets = {"choices": [f"{NOUNS[number % 9]}.", "No.", "Yes, always."], "labels": [1, 1, 0]}
        yield {"question": f"Is it {number}?", "mc1_targets": targets, "mc2_targets": targets}


PLAIN = {"filter": None, "num_fewshot": None, "until": None, "average": "documents", "limit": None}
PLAIN |= {"adapter": "none", "revision": None}


@pytest.fixture
def suite(local):
    """A benchmark of the suite over a few rows of its own."""

    def make(name, **changes):
        made = {
            "arc": ("arc/arc_challenge", "acc_norm", {"num_fewshot": 25}, "test", arc_rows(50, 8), arc_rows(0, 40)),
            "gsm8k": (
                "gsm8k/gsm8k",
                "exact_match",
                {"num_fewshot": 5, "filter": "flexible-extract"},
                "test",
                gsm8k_rows(50, 6),
                gsm8k_rows(0, 20),
            ),
            "mmlu": (
                "mmlu/default/mmlu_moral_{subject}",
                "acc",
                {"num_fewshot": 5},
                "test",
                mmlu_rows(50, 7),
                mmlu_rows(0, 30),
            ),
            "truthfulqa": ("truthfulqa/truthfulqa_mc2", "acc", {}, "validation", truthfulqa_rows(6), None),
        }
        task, metric, fields, split, rows, shots = made[name]
        splits = {split: local(f"{name}-rows", rows)}
        if shots is not None:
            splits["dev" if name == "mmlu" else "train"] = local(f"{name}-shots", shots)
        return HarnessTask(**{**PLAIN, "task": task, "metric": metric, "splits": splits, **fields, **changes})

    return make


@pytest.fixture
def hflm(llama, tokenizer):
    return HFLM(pretrained=llama, tokenizer=tokenizer, backend="causal", batch_size=1)


def harness_own(asked, inputs, lm):
    tasks = {one.task.task_name: one.task for one in asked.load_tasks(inputs)}
    return evaluate(lm=lm, task_dict={"tasks": tasks}, bootstrap_iters=0)["results"]


@pytest.mark.parametrize("name", ["arc", "gsm8k", pytest.param("truthfulqa", marks=pytest.mark.slow)])
def test_the_score_is_lm_evaluation_harness_own(name, suite, llama, tokenizer, inputs, hflm):
    asked = suite(name)
    outcome = asked.run(llama, tokenizer, inputs)
    (own,) = harness_own(asked, inputs, hflm).values()
    value = own[f"{asked.metric},{asked.filter or 'none'}"]
    if name == "truthfulqa":  # a share of probability, not a count: the order of sums shows in the last digits
        assert score(outcome.items).value == pytest.approx(value, rel=1e-5)
        assert score(asked.score(hflm, inputs).items).value == value
    else:
        assert score(outcome.items).value == value
    assert all(item.prompt and item.gold for item in outcome.items)


@pytest.mark.slow
def test_numbers_that_are_right_are_counted_as_lm_evaluation_harness_does(suite, local, tiny, tokenizer, inputs):
    """A random model is never right by itself: half of the questions get what it writes for an answer."""
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[tokenizer("0123456789")["input_ids"]] *= 2
    said = [item.answer for item in suite("gsm8k").run(model, tokenizer, inputs).items]
    rows = list(gsm8k_rows(50, 6))
    numbers = [re.findall(r"-?[0-9]+", text)[-1] for text in said]
    for row, number in list(zip(rows, numbers, strict=True))[::2]:
        row["answer"] = f"so it is\n#### {number}"
    splits = {"test": local("right", rows), "train": local("gsm8k-shots", gsm8k_rows(0, 20))}
    asked = suite("gsm8k", splits=splits)
    outcome = asked.run(model, tokenizer, inputs)
    (own,) = harness_own(asked, inputs, HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)).values()
    assert score(outcome.items).value == own["exact_match,flexible-extract"] == 0.5
    assert [item.numerator for item in outcome.items] == [1.0, 0.0] * 3


def test_subtasks_are_scored_apart_and_averaged_as_asked(suite, llama, tokenizer, inputs, hflm):
    asked = suite("mmlu")
    outcome = asked.run(llama, tokenizer, inputs)
    own = harness_own(asked, inputs, hflm)
    assert set(own) == {f"mmlu_moral_{subject}" for subject in SUBJECTS}
    sizes = {}
    for subject in SUBJECTS:
        part = [item for item in outcome.items if item.category == subject]
        sizes[subject] = len(part)
        assert score(part).value == own[f"mmlu_moral_{subject}"]["acc,none"]
        assert [item.id for item in part] == [f"{subject}/{number}" for number in range(len(part))]
    assert sizes["disputes"] > sizes["scenarios"]
    right = sum(own[f"mmlu_moral_{subject}"]["acc,none"] * sizes[subject] for subject in SUBJECTS)
    assert score(outcome.items).value == pytest.approx(right / sum(sizes.values()), rel=1e-12)
    by_task = suite("mmlu", average="tasks").run(llama, tokenizer, inputs)
    mean = sum(own[f"mmlu_moral_{subject}"]["acc,none"] for subject in SUBJECTS) / 2
    assert score(by_task.items).value == pytest.approx(mean, rel=1e-12)
    assert sum(item.denominator for item in by_task.items) == pytest.approx(len(by_task.items))


def test_a_limit_is_over_all_subtasks_and_rows_of_no_task_are_refused(suite, local, inputs):
    few = suite("mmlu", limit=4).load_tasks(inputs)
    assert sum(len(one.numbers) for one in few) == 4
    rows = [{**row, "subject": "alchemy"} for row in mmlu_rows(0, 8)]
    splits = {"dev": local("dev", mmlu_rows(0, 30)), "test": local("odd", rows)}
    with pytest.raises(ValueError, match="subject='alchemy', which lm_eval has no task for"):
        suite("mmlu", splits=splits).load_tasks(inputs)
    rows = [row for row in mmlu_rows(0, 8) if row["subject"] == "disputes"]
    splits["test"] = local("half", rows)
    with pytest.raises(ValueError, match="'test' holds 0 rows with subject='scenarios', 1 are required"):
        suite("mmlu", splits=splits).load_tasks(inputs)


def test_both_sets_of_stops_can_be_chosen_and_are_other_items(suite, inputs):
    own = suite("gsm8k").load_tasks(inputs)[0].task
    assert own.config.generation_kwargs["until"] == ["Question:", "</s>", "<|im_end|>"]
    leaderboard = suite("gsm8k", until=[":", "Question:", "Question"]).load_tasks(inputs)[0].task
    assert leaderboard.config.generation_kwargs["until"] == [":", "Question:", "Question"]
    assert leaderboard.config.generation_kwargs["do_sample"] is False


def test_the_hash_of_an_item_knows_prompt_stops_metric_and_filter(suite, llama, tokenizer, inputs):
    changes = [{}, {"until": ["."]}, {"filter": "strict-match"}, {"num_fewshot": 4}]
    hashes = {suite("gsm8k", limit=1, **change).run(llama, tokenizer, inputs).items[0].hash for change in changes}
    assert len(hashes) == len(changes)


def write_mirror(folder, splits, config):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / config).mkdir(parents=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / config / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n# Data\n")


def test_a_mirror_gives_the_items_of_the_hub_and_of_plain_files(suite, tmp_path, llama, tokenizer, inputs):
    write_mirror(tmp_path / "openai/gsm8k", {"train": gsm8k_rows(0, 20), "test": gsm8k_rows(50, 6)}, "main")
    source = {"kind": "local", "path": str(tmp_path / "openai/gsm8k")}
    mirrored = {split: Mirror(source, "main", split) for split in ("train", "test")}
    items = [suite("gsm8k", **change).run(llama, tokenizer, inputs).items for change in ({}, {"splits": mirrored})]
    assert items[0] == items[1]
    with pytest.raises(ValueError, match=r"gives no split 'test' of 'socratic'.*hf download openai/gsm8k"):
        read_rows(Mirror(source, "socratic", "test"), inputs)


def test_a_hub_that_cannot_be_reached_says_what_to_download(inputs, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    origin = HubDataset({"kind": "hub", "repo": "openai/gsm8k", "revision": "abc"}, "main", "test", None, False, None)
    with pytest.raises(ValueError, match=r"hf download openai/gsm8k [^\n]*--revision abc [^\n]*items=mirror"):
        read_rows(origin, inputs)


def unfair_rows(count):
    options = ["Arbitration", "Choice of law", "None"]
    for number in range(count):
        gold = [0, 1] if number % 4 == 1 else [2]
        yield {"input": f"Term {number}: {NOUNS[number % 9]}.\nThe relevant options are:", "options": options} | {
            "gold_index": gold
        }


def test_labels_are_picked_by_their_mean_token_probability(local, llama, tokenizer, inputs, hflm):
    asked = LabelledOptions({"test": local("unfair", unfair_rows(9))}, None)
    outcome = asked.run(llama, tokenizer, inputs)
    plain = asked.score(hflm, inputs)
    assert [item.answer for item in outcome.items] == [item.answer for item in plain.items]
    for item in outcome.items:
        sums = {}
        for option in ("Arbitration", "Choice of law", "None"):
            whole = tokenizer(item.prompt + " " + option)["input_ids"]
            length = len(whole) - len(tokenizer(item.prompt)["input_ids"])
            sums[option] = hflm._loglikelihood_tokens([(None, whole[:-length], whole[-length:])])[0][0] / length
        assert item.answer == max(sums, key=sums.get)
        assert item.numerator == (item.answer in item.gold.split(", "))
    assert outcome.also["commonest_label_share"] == pytest.approx(7 / 9)
    assert "Always answering 'None' would score 0.7778" in outcome.notes[0]


def test_the_error_of_macro_f1_is_that_of_repeated_sampling():
    rng = np.random.default_rng(0)

    def sample():
        golds = rng.choice(3, size=200, p=[0.7, 0.2, 0.1])
        picks = np.where(rng.random(200) < 0.6, golds, rng.integers(0, 3, 200))
        return picks.tolist(), [frozenset([int(gold)]) for gold in golds]

    values = [macro_f1(*sample(), 3) for _ in range(400)]
    errors = [macro_f1_stderr(*sample(), 3) for _ in range(40)]
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.12)
    picks, golds = sample()
    assert macro_f1_stderr(picks, golds, 3) == macro_f1_stderr(picks, golds, 3) > 0


def test_macro_f1_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    picks, golds = [0, 1, 2, 2, 0], [frozenset({0}), frozenset({0, 1}), frozenset({2}), frozenset({1}), frozenset({2})]
    chosen = [[int(pick == label) for label in range(4)] for pick in picks]
    right = [[int(label in gold) for label in range(4)] for gold in golds]
    assert macro_f1(picks, golds, 4) == pytest.approx(metrics.f1_score(right, chosen, average="macro", zero_division=0))


@pytest.mark.parametrize("change", [{"input": None}, {"gold_index": []}, {"gold_index": [3]}, {"options": "None"}])
def test_rows_without_labels_are_refused(change, local, inputs, hflm):
    rows = [{**row, **change} for row in unfair_rows(1)]
    with pytest.raises(ValueError, match="row 0 has"):
        LabelledOptions({"test": local("unfair", rows)}, None).score(hflm, inputs)
