import random

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline.evaluation.loglikelihood import SharedPrefixLM


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
