"""A model behind a server: the same scores and texts as in this process, and what happens when the server fails."""

import importlib.util
import sys
from pathlib import Path

import psutil
import pytest
import requests
from lm_eval.api.instance import Instance

from pipeline.evaluation.model.generation import GenerationSettings, LocalGenerator
from pipeline.evaluation.remote import backends
from pipeline.evaluation.remote.completions import CompletionModel, RemoteGenerator, RemoteLM
from pipeline.evaluation.remote.endpoint import Endpoint, RefusedError, UnreachableError, UnusableError
from pipeline.evaluation.remote.serving import ServerError, served
from pipeline.evaluation.tasks.labels import LabelledOptions
from pipeline.evaluation.tasks.loglikelihood import SharedPrefixLM
from tests.children import PATIENCE_S

_FILE = Path(__file__).parents[1] / "completion_server.py"
_spec = importlib.util.spec_from_file_location("completion_server", _FILE)
server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(server)
GREEDY = {"stop": ["Q"], "max_new_tokens": 8, "temperature": 0.0, "top_p": 1.0, "num_samples": 2, "seed": 0}
PROMPTS = ["Question: tree?", "42", "a blöck grows"]


def remote(url, **changes):
    settings = {"key_variable": None, "timeout_s": PATIENCE_S, "num_attempts": 3, "wait_s": 0, "max_wait_s": 0}
    endpoint = Endpoint.of({"url": url, **settings, "num_parallel": 2, **changes})
    return CompletionModel("tiny", endpoint, sleep=lambda seconds: None)


@pytest.fixture
def up(llama, tokenizer):
    """A server that first sends the given failures: the model at its address, and what it was asked."""

    class Up:
        def __init__(self, *failures):
            self.served = server.Served(llama, tokenizer, failures)
            self.context = server.serving(self.served)

        def __enter__(self):
            return remote(self.context.__enter__()), self.served

        def __exit__(self, *error):
            self.context.__exit__(*error)

    return Up


def options():
    pairs = [(prompt, ending) for prompt in PROMPTS for ending in (" one", " a tree", " seven kites")]
    return [Instance("loglikelihood", {}, pair, place, ("t", place // 3, 1)) for place, pair in enumerate(pairs)]


def test_losses_of_right_answers_are_those_of_this_process(up, local, inputs, llama, tokenizer):
    rows = [{"input": f"Terms {i}:", "options": ["größer", "none at all"], "gold_index": i} for i in range(2)]
    asked = LabelledOptions({"test": local("labels", rows)}, None)
    expected = asked.run(llama, tokenizer, inputs).items
    with up() as (model, _):
        found = asked.score(RemoteLM(model, tokenizer, 2048, lambda **_: None), inputs).items
    for item, other in zip(found, expected, strict=True):
        assert item.gold_loss.bits == pytest.approx(other.gold_loss.bits, rel=1e-4)
        assert item.gold_loss.num_bytes == other.gold_loss.num_bytes
        assert item.gold_loss.margin_bits == pytest.approx(other.gold_loss.margin_bits, abs=1e-3)


def test_scores_are_those_of_this_process(up, llama, tokenizer):
    expected = SharedPrefixLM(llama, tokenizer, lambda **_: None).loglikelihood(options())
    with up() as (model, _):
        found = RemoteLM(model, tokenizer, 2048, lambda **_: None).loglikelihood(options(), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_texts_are_those_of_this_process(up, llama, tokenizer):
    asked = [
        Instance(
            "generate_until", {}, (prompt, {"until": ["e"], "do_sample": False, "max_gen_toks": 9}), 0, ("t", i, 1)
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    local = LocalGenerator(llama, tokenizer)
    with up() as (model, record):
        assert RemoteGenerator(model, tokenizer, 2048).generate(
            PROMPTS, GenerationSettings(**GREEDY)
        ) == local.generate(PROMPTS, GenerationSettings(**GREEDY))
        assert {body["n"] for body in record.asked} == {1} and record.asked[0]["stop"] == ["Q"]
        found = RemoteLM(model, tokenizer, 2048, lambda **_: None).generate_until(asked)
    assert found == SharedPrefixLM(llama, tokenizer, lambda **_: None).generate_until(asked)


def test_samples_are_asked_for_with_a_seed_of_the_prompts_own(up, tokenizer):
    asked = {**GREEDY, "temperature": 1.0, "num_samples": 3, "stop": []}
    with up() as (model, record):
        generator = RemoteGenerator(model, tokenizer, 2048)
        first = generator.generate(PROMPTS, GenerationSettings(**asked))
        assert generator.generate(PROMPTS[::-1], GenerationSettings(**asked)) == first[::-1]
    assert all(len(row) == 3 for row in first)
    assert len({body["seed"] for body in record.asked}) == 3 and {body["n"] for body in record.asked} == {3}


def test_passing_failures_and_garbage_are_asked_again(up, tokenizer):
    with up((503, "busy"), (200, "no json")) as (model, record):
        (texts, *_) = RemoteGenerator(model, tokenizer, 2048).generate(["42"], GenerationSettings(**GREEDY))
    assert len(texts) == 2 and len(record.asked) == 3


@pytest.mark.parametrize(
    ("failures", "error", "message"),
    [
        ([(401, "wrong key")], RefusedError, "HTTP 401 Unauthorized: wrong key"),
        ([(500, "down")] * 3, UnreachableError, "no answer in 3 attempts: HTTP 500 Internal Server Error: down"),
        ([(200, '{"choices": [{"text": "a"}, {"text": "b"}]}')] * 3, UnusableError, "2 texts, 1 were asked for"),
        ([(200, '{"error": "x"}')] * 3, UnusableError, "not a completion"),
    ],
)
def test_a_server_that_fails_for_good_is_named(up, tokenizer, failures, error, message):
    with up(*failures) as (model, _), pytest.raises(error, match=message):
        RemoteGenerator(model, tokenizer, 2048).generate(["42"], GenerationSettings(**GREEDY))


def test_a_server_without_log_probabilities_is_refused(up, tokenizer):
    answer = (200, '{"choices": [{"text": "a", "logprobs": null}]}')
    with up(*[answer] * 9) as (model, _), pytest.raises(UnusableError, match="echoes no log-probabilities"):
        RemoteLM(model, tokenizer, 2048, lambda **_: None).loglikelihood(options()[:1], disable_tqdm=True)


def test_nobody_at_the_address_is_named(tokenizer):
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9/v1 gave no answer in 3 attempts"):
        RemoteGenerator(remote("http://127.0.0.1:9/v1"), tokenizer, 2048).generate(["42"], GenerationSettings(**GREEDY))


@pytest.mark.slow
def test_a_server_of_our_own_is_up_for_the_block_and_gone_after_it(make_model, tmp_path):
    from pipeline.models import load, load_tokenizer

    directory = make_model()
    model, tokenizer = load(directory), load_tokenizer(directory)
    settings = {
        "url": "",
        "key_variable": None,
        "timeout_s": PATIENCE_S,
        "num_attempts": 2,
        "wait_s": 0,
        "max_wait_s": 0,
    }
    command = [sys.executable, str(_FILE), "{model}", "{port}"]
    settings |= {"num_parallel": 2, "command": command, "startup_s": PATIENCE_S}
    with backends.remote("vllm", None, settings, directory, tmp_path / "log") as (served, window):
        lm = RemoteLM(served, tokenizer, window, lambda **_: None)
        found = lm.loglikelihood(options(), disable_tqdm=True)
        url = lm._model.endpoint.url
        assert lm._model.model == backends.SERVED_AS
    expected = SharedPrefixLM(model, tokenizer, lambda **_: None).loglikelihood(options())
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/models", timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("command", "startup_s", "message"),
    [
        (["/nowhere/vllm"], PATIENCE_S, "cannot be started"),
        ([sys.executable, "-c", "print('no GPU'); raise SystemExit(3)"], PATIENCE_S, "code 3 .* answered:\nno GPU"),
        ([sys.executable, "-c", "import time; time.sleep(3600)"], 1, "did not answer within 1 s"),
    ],
)
def test_a_server_that_does_not_come_up_is_an_error_and_leaves_nothing(tmp_path, command, startup_s, message):
    with pytest.raises(ServerError, match=message), served(command, tmp_path, tmp_path / "log", startup_s):
        raise AssertionError("it must not come up")
    assert not [child for child in psutil.Process().children() if "3600" in " ".join(child.cmdline())]


def test_backends_are_checked_before_anything_starts():
    class Scored:
        def score(self, lm, inputs):
            return None

    backends.check("hf", Scored(), None)
    backends.check("local", object(), None)
    with pytest.raises(ValueError, match="backend='tgi' is not known; use one of local, hf, vllm, endpoint"):
        backends.check("tgi", Scored(), None)
    with pytest.raises(ValueError, match="object needs the model in this process"):
        backends.check("vllm", object(), None)
    with pytest.raises(ValueError, match=r"evaluate\.server\.models="):
        backends.check("endpoint", Scored(), None)
