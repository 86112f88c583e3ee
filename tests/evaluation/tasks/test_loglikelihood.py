import random

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline.evaluation.tasks.grouping import Group, Option, batches, clusters
from pipeline.evaluation.tasks.loglikelihood import SharedPrefixLM


def requests(items):
    return [
        Instance("loglikelihood", {}, pair, idx, ("task", doc, 1))
        for doc, pairs in enumerate(items)
        for idx, pair in enumerate(pairs)
    ]


def options(rng, count):
    words = ["tree", "a", "Question:", "of", "blöck", "42", "grows", "🙂"]
    items = []
    for _ in range(count):
        context = " ".join(rng.choices(words, k=rng.randint(1, 25)))
        endings = [" " + " ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(rng.randint(2, 5))]
        items.append([(context, ending) for ending in endings])
    items.append([("The trophy did not fit, so Ann", " was big."), ("The trophy did not fit, so Bob", " was big.")])
    items.append([("", " no context at all"), ("", " none")])
    items.append([("trailing space ", "a"), ("trailing space ", "b")])
    items.append([("same", " x"), ("same", " x")])
    items.append([("one token options", "a"), ("one token options", "b"), ("one token options", "c")])
    items.append([("alone", " here")])
    examples = "Question: 42?\nAnswer: A\n\n" * 3
    for number in range(7):  # the same examples before every item, options of one token and of several
        context = f"{examples}Question: {words[number]} {number}?\nAnswer:"
        items.append([(context, ending) for ending in ("A", "B", "C", "D")])
        items.append([(context, ending) for ending in (" tree", " grows", " a")])
        items.append([(f"{examples}{words[number]} and", " more")])
    return items


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("gemma2", {"head_dim": 8, "sliding_window": 8})])
def test_scores_and_choices_are_those_of_hflm(tiny, tokenizer, family, changes):
    model = tiny(family, **changes)
    items = options(random.Random(0), 25)
    expected = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4).loglikelihood(
        requests(items), disable_tqdm=True
    )
    lm = SharedPrefixLM(model, tokenizer, lambda **_: None)
    found = lm.loglikelihood(requests(items))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5, abs=1e-4)
    start = 0
    for pairs in items:
        part = slice(start, start + len(pairs))
        best = [max(range(len(pairs)), key=lambda i: round(values[part][i][0], 3)) for values in (found, expected)]
        assert best[0] == best[1]
        start += len(pairs)


def test_a_shared_context_is_run_once(llama, tokenizer):
    context = "x" * 400
    items = [[(context, f" option {i}") for i in range(4)]]
    lm = SharedPrefixLM(llama, tokenizer, lambda **_: None)
    lm.loglikelihood(requests(items))
    assert lm.tokens_run < 400 + 4 * 20


def test_examples_that_items_share_are_run_once(llama, tokenizer):
    contexts = ["x" * 400 + f"{number} is" for number in range(20)]
    for endings in ([" a tree", " grown"], ["A", "B"]):
        lm = SharedPrefixLM(llama, tokenizer, lambda **_: None)
        lm.loglikelihood(requests([[(context, ending) for ending in endings] for context in contexts]))
        assert lm.tokens_run < 400 + 20 * 30


def test_clusters_lose_nothing_and_keep_what_is_common():
    rng = random.Random(2)
    stems = [[rng.randrange(9) for _ in range(size)] for size in (60, 45, 200)]
    groups = []
    for place in range(40):
        stem = stems[place % 4] if place % 4 < 3 else []
        inputs = stem + [rng.randrange(9) for _ in range(rng.randint(3, 30))]
        groups.append(Group([Option(place, inputs, inputs[-2:])], len(inputs) - 2))
    found = clusters(groups)
    assert sorted(group.options[0].place for c in found for group in c.groups) == list(range(40))
    assert {c.stem for c in found} >= {0} and sum(c.stem >= 45 for c in found) == 3
    for cluster in found:
        starts = {tuple(group.options[0].inputs[: cluster.stem]) for group in cluster.groups}
        assert len(starts) <= 1 or cluster.stem == 0
        for batch in batches(cluster, 256, 1024):
            assert len(batch.groups) == 1 or (batch.cost <= 256 and batch.cached <= 1024)


def test_what_is_too_long_is_cut_on_the_left_as_hflm_does(tiny, tokenizer):
    model = tiny(max_position_embeddings=32)
    items = [[("long " * 20, " end"), ("long " * 20, " fin")]]
    expected = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal").loglikelihood(
        requests(items), disable_tqdm=True
    )
    found = SharedPrefixLM(model, tokenizer, lambda **_: None).loglikelihood(requests(items))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    with pytest.raises(ValueError, match="1 to 32"):
        SharedPrefixLM(model, tokenizer, lambda **_: None).loglikelihood(requests([[("a", " " + "b" * 40)]]))


def test_progress_is_reported(llama, tokenizer):
    seen = []
    items = options(random.Random(1), 5)
    SharedPrefixLM(llama, tokenizer, lambda **fields: seen.append(fields)).loglikelihood(requests(items))
    assert seen[-1]["step"] == seen[-1]["total"] == sum(map(len, items))
