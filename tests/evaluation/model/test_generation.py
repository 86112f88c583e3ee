import random
from itertools import product

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pipeline.evaluation.model.decoding import Decoder, Request, Sampling
from pipeline.evaluation.model.generation import (
    GenerationSettings,
    LocalGenerator,
    cut,
    occurrences,
    row_seed,
    stop_tokens,
    uniforms,
)
from pipeline.evaluation.model.scoring import TokenScorer
from pipeline.evaluation.tasks.loglikelihood import SharedPrefixLM

FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 3.0},
    "mistral": {"sliding_window": 8},
    "cohere": {"logit_scale": 0.25},
    "mamba": {"state_size": 4},
}
GREEDY = {"stop": [], "max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "num_samples": 1, "seed": 0}


def words(rng, count):
    return " ".join(rng.choices(["tree", "a", "Question:", "of", "blöck", "42", "grows", "🙂"], k=count))


def prompts(count, shared=""):
    rng = random.Random(3)
    return [shared + words(rng, rng.randint(1, 9)) for _ in range(count)]


def by_hand(model, tokenizer, prompt, count):
    """Greedy tokens, the whole sequence run again for each."""
    tokens = tokenizer(prompt)["input_ids"]
    written = []
    with torch.no_grad():
        for _ in range(count):
            written.append(int(model(input_ids=torch.tensor([tokens + written])).logits[0, -1].argmax()))
            if written[-1] in stop_tokens(model, tokenizer):
                return tokenizer.decode(written[:-1], skip_special_tokens=True)
    return tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", ["", "Examples first. " * 4])
def test_greedy_text_is_that_of_the_slow_path(tiny, tokenizer, family, shared):
    model = tiny(family, **FAMILIES[family])
    texts = prompts(7, shared)
    found = LocalGenerator(model, tokenizer).generate(texts, GenerationSettings(**GREEDY))
    assert [text for (text,) in found] == [by_hand(model, tokenizer, prompt, 12) for prompt in texts]


def test_what_prompts_begin_with_is_run_once(llama, tokenizer):
    generator = LocalGenerator(llama, tokenizer)
    texts = prompts(10, "x" * 300)
    generator.generate(texts, GenerationSettings(**GREEDY))
    rests = sum(len(tokenizer(text)["input_ids"]) - 300 for text in texts)
    assert generator.decoder.tokens_run < 300 + 2 * rests


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_samples_do_not_depend_on_the_other_prompts(llama, tokenizer, top_p):
    asked = {**GREEDY, "temperature": 0.7, "top_p": top_p, "num_samples": 3, "seed": 5}
    texts = prompts(6, "shared " * 5)
    generator = LocalGenerator(llama, tokenizer)
    together = generator.generate(texts, GenerationSettings(**asked))
    assert [generator.generate([text], GenerationSettings(**asked))[0] for text in texts] == together
    assert generator.generate(texts[::-1], GenerationSettings(**asked)) == together[::-1]
    assert generator.generate(texts, GenerationSettings(**{**asked, "seed": 6})) != together
    assert len({sample for row in together for sample in row}) > 12


def test_equal_prompts_get_samples_of_their_own(llama, tokenizer):
    asked = {**GREEDY, "temperature": 1.0, "num_samples": 2}
    first, second = LocalGenerator(llama, tokenizer).generate(["tree", "tree"], GenerationSettings(**asked))
    assert len({*first, *second}) == 4
    assert occurrences(["a", "b", "a"]) == [0, 0, 1]


def test_draws_are_the_seeds_own():
    assert torch.equal(uniforms(1, "p", 0, 0, 5), uniforms(1, "p", 0, 0, 9)[:5])
    assert len({row_seed(*parts) for parts in product((0, 1), "ab", (0, 1), (0, 1))}) == 16


@pytest.mark.parametrize("top_p", [1.0, 0.75])
def test_tokens_come_up_as_often_as_their_probability_says(top_p):
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.0])
    probs = (logits / 0.8).softmax(0).double()
    if top_p < 1:
        order = probs.argsort(descending=True, stable=True)
        kept = order[: int((probs[order].cumsum(0) < top_p).sum()) + 1]
        probs = torch.zeros(5, dtype=torch.float64).index_put((kept,), probs[kept])
        probs /= probs.sum()
    draws = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    picked = Sampling(0.8, top_p).choose(logits.expand(20000, -1), draws)
    found = torch.bincount(picked, minlength=5).double() / 20000
    torch.testing.assert_close(found, probs, rtol=0, atol=1e-4)


def test_rows_end_at_their_stops_and_leave_the_batch(llama, tokenizer):
    texts = prompts(6)
    free = [text for (text,) in LocalGenerator(llama, tokenizer).generate(texts, GenerationSettings(**GREEDY))]
    stop = next(letter for text in free for letter in text[2:] if letter.isascii() and letter.isprintable())
    found = [
        text
        for (text,) in LocalGenerator(llama, tokenizer).generate(
            texts, GenerationSettings(**{**GREEDY, "stop": [stop, ""]})
        )
    ]
    assert found == [text.split(stop)[0] for text in free] and found != free
    decoder = Decoder(TokenScorer(llama))
    written = decoder.decode([Request((5, 6)), Request((7,))], 9, frozenset(), lambda tokens: len(tokens) == 4, None)
    assert [len(tokens) for tokens in written] == [4, 4]


def test_a_special_token_ends_a_text(llama, tokenizer):
    first = LocalGenerator(llama, tokenizer)
    (tokens,) = first.decoder.decode(
        [Request(tuple(tokenizer("tree")["input_ids"]))], 6, frozenset(), lambda t: False, None
    )
    named = llama.generation_config.eos_token_id
    llama.generation_config.eos_token_id = [tokens[2], 299]
    try:
        ((text,),) = LocalGenerator(llama, tokenizer).generate(["tree"], GenerationSettings(**GREEDY))
    finally:
        llama.generation_config.eos_token_id = named
    assert text == tokenizer.decode(tokens[: tokens.index(tokens[2])], skip_special_tokens=True)


def test_a_prompt_too_long_is_cut_on_the_left(tiny, tokenizer):
    model = tiny(max_position_embeddings=64)
    long, kept = "y" * 200 + "tree" * 13, "tree" * 13
    generator = LocalGenerator(model, tokenizer)
    assert generator.generate([long], GenerationSettings(**GREEDY)) == generator.generate(
        [kept], GenerationSettings(**GREEDY)
    )
    with pytest.raises(ValueError, match="leaves no room in the model's 64 positions"):
        generator.generate([kept], GenerationSettings(**{**GREEDY, "max_new_tokens": 64}))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"top_p": 0.0}, "top_p"), ({"temperature": -1.0}, "temperature"), ({"num_samples": 0}, "at least 1")],
)
def test_numbers_that_mean_nothing_are_refused(llama, tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        LocalGenerator(llama, tokenizer).generate(["a"], GenerationSettings(**{**GREEDY, **change}))


def test_a_text_is_cut_before_its_first_stop():
    assert cut("one. two: three", [":", "two"]) == "one. "


def requests(texts, **settings):
    return [Instance("generate_until", {}, (text, settings), 0, ("task", doc, 1)) for doc, text in enumerate(texts)]


@pytest.mark.parametrize("until", [["e", "Question"], ["\n\n"], []])
def test_answers_are_those_of_hflm(llama, tokenizer, until):
    texts = prompts(8, "Question: how many?\nAnswer: 42\n\n")
    asked = requests(texts, until=until, do_sample=False, temperature=0.0, max_gen_toks=16)
    expected = HFLM(pretrained=llama, tokenizer=tokenizer, backend="causal", batch_size=1).generate_until(asked, True)
    assert SharedPrefixLM(llama, tokenizer, lambda **_: None).generate_until(asked) == expected
