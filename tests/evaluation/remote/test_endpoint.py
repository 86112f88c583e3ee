"""Asking a model over HTTP: patience with what passes, none with what does not, and a key that stays secret."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from pipeline.evaluation.judge.judging import judge_prompts, rating
from pipeline.evaluation.remote.endpoint import ChatModel, Endpoint, RefusedError, UnreachableError, UnusableError
from tests.children import PATIENCE_S
from tests.evaluation.judge_server import serving, settings

ASKED = [{"role": "user", "content": "Well?"}]


def scripted(*answers):
    """The answers in turn; the last one for ever."""
    return lambda body, number: answers[min(number, len(answers) - 1)]


def ask(endpoint, accept=str, **changes):
    waits = []
    model = ChatModel("judge-1", Endpoint.of({**endpoint, **changes}), waits.append, temperature=0.0, max_tokens=64)
    try:
        return model.ask(ASKED, accept), waits
    except (RuntimeError, ValueError) as error:
        return error, waits


def test_the_request_is_the_protocols():
    with serving(scripted("Fine.")) as (judge, endpoint):
        assert ask(endpoint)[0] == "Fine."
    assert judge.requests == [{"model": "judge-1", "messages": ASKED, "temperature": 0.0, "max_tokens": 64}]
    assert judge.keys == [None]


@pytest.mark.parametrize(
    "failure",
    [(500, {}, "oops"), (503, {}, ""), (429, {}, "slow down"), None, (200, {}, "<html>"), (200, {}, '{"choices": []}')],
    ids=["500", "503", "429", "closed", "html", "no choice"],
)
def test_a_failure_that_passes_is_asked_again(failure):
    with serving(scripted(failure, failure, "At last.")) as (judge, endpoint):
        assert ask(endpoint)[0] == "At last."
    assert len(judge.requests) == 3


def test_waits_double_up_to_the_maximum_and_heed_the_server():
    with serving(scripted((503, {}, ""), (503, {}, ""), (503, {}, ""), (429, {"Retry-After": "7"}, ""), "Yes.")) as (
        _,
        endpoint,
    ):
        said, waits = ask(endpoint, num_attempts=5, wait_s=1.0, max_wait_s=3.0)
        assert said == "Yes." and waits == [1.0, 2.0, 3.0, 3.0]
        with serving(scripted((429, {"Retry-After": "7"}, ""), "Yes.")) as (_, other):
            assert ask(other, wait_s=1.0, max_wait_s=60.0)[1] == [7.0]


def test_a_server_that_is_down_is_unreachable():
    with serving(scripted("x")) as (_, endpoint):
        pass
    error, waits = ask(endpoint, num_attempts=4)
    assert isinstance(error, UnreachableError) and "gave no answer in 4 attempts" in str(error) and len(waits) == 3


def test_a_slow_server_is_given_up():
    given_up = threading.Event()
    with serving(lambda body, number: given_up.wait(PATIENCE_S) and "late") as (_, endpoint):
        error, _ = ask(endpoint, timeout_s=0.05, num_attempts=1)
        given_up.set()
    assert isinstance(error, UnreachableError) and "1 attempt:" in str(error)


def test_half_a_character_in_a_reply_is_replaced():
    said = json.dumps({"choices": [{"message": {"role": "assistant", "content": "a\ud800b"}}]})
    with serving(scripted((200, {}, said))) as (_, endpoint):
        assert ask(endpoint)[0] == "a?b"


def test_a_refusal_is_final_and_keeps_the_key_secret(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-0123")
    refusal = (401, {}, json.dumps({"error": "Incorrect API key provided: sk-secret-0123"}))
    with serving(scripted(refusal)) as (judge, endpoint):
        error, _ = ask(endpoint, key_variable="JUDGE_KEY")
    assert isinstance(error, RefusedError) and len(judge.requests) == 1 and judge.keys == ["Bearer sk-secret-0123"]
    assert "HTTP 401" in str(error) and "sk-secret" not in str(error)
    with serving(scripted((500, {}, "sk-secret-0123"))) as (_, endpoint):
        error, _ = ask(endpoint, key_variable="JUDGE_KEY")
    assert isinstance(error, UnreachableError) and "sk-secret" not in str(error) and error.__cause__ is None


def test_a_key_is_not_carried_to_another_address():
    with serving(scripted("stolen")) as (thief, other):
        moved = (307, {"Location": other["url"]}, "")
        with serving(scripted(moved)) as (_, endpoint):
            error, _ = ask(endpoint)
    assert isinstance(error, RefusedError) and "HTTP 307" in str(error) and not thief.requests


def test_a_missing_key_and_bad_settings_are_named(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    good = settings("http://localhost:1/v1")
    with pytest.raises(ValueError, match="variable JUDGE_KEY is not set"):
        Endpoint.of({**good, "key_variable": "JUDGE_KEY"}).key()
    for change, message in [
        ({"url": "localhost:8000"}, "not a web address"),
        ({"num_attempts": 0}, "num_attempts=0"),
        ({"wait_s": 5}, "between 0 and max_wait_s"),
        ({"timeout": 3}, "required are"),
    ]:
        with pytest.raises(ValueError, match=message):
            Endpoint.of({**good, **change})
    with pytest.raises(ValueError, match="required are"):
        Endpoint.of(None)


@pytest.mark.parametrize(
    ("judgement", "value"),
    [("Good. Rating: [[7]]", 7.0), ("[[8.5]] and later [[2]]", 8.5), ("Rating: [6]", 6.0), ("[3] but [[4]]", 4.0)],
)
def test_a_rating_is_found(judgement, value):
    assert rating(judgement) == value


@pytest.mark.parametrize("judgement", ["", "Rating: 7", "[[rating]]", "[[11]]", "[[0]]", "[[seven]]"])
def test_what_is_no_rating_is_refused(judgement):
    with pytest.raises(UnusableError):
        rating(judgement)


def test_garbage_is_asked_again_and_in_the_end_reported_as_such():
    def accept(text):
        rating(text)
        return text

    with serving(scripted("I liked it.", "[[99]]", "[[7]]")) as (_, endpoint):
        assert ask(endpoint, accept)[0] == "[[7]]"
    with serving(scripted("I liked it.")) as (judge, endpoint):
        error, _ = ask(endpoint, accept)
    assert isinstance(error, UnusableError) and "no rating" in str(error) and len(judge.requests) == 3


ROWS = [
    {"name": name, "system_prompt": "Judge.", "prompt_template": template}
    for name, template in {
        "single-v1": "Q: {question} A: {answer}",
        "single-math-v1": "Q: {question} R: {ref_answer_1} A: {answer}",
        "single-v1-multi-turn": "{question_1}|{answer_1}|{question_2}|{answer_2}",
        "single-math-v1-multi-turn": "{question_1}|{ref_answer_1}|{answer_1}|{question_2}|{ref_answer_2}|{answer_2}",
    }.items()
]


def test_a_prompt_is_filled_at_once():
    prompt = judge_prompts(ROWS)["single-v1"]
    system, user = prompt.messages(["what is {answer}?"], ["{question} again"], [])
    assert system == {"role": "system", "content": "Judge."}
    assert user["content"] == "Q: what is {answer}? A: {question} again"
    both = judge_prompts(ROWS)["single-math-v1-multi-turn"]
    assert both.messages(["a", "b"], ["c", "d"], ["e", "f"])[1]["content"] == "a|e|c|b|f|d"
    with pytest.raises(ValueError, match=r"asks for \{ref_answer_1\}"):
        replace(both).messages(["a", "b"], ["c", "d"], [])


def test_missing_prompts_are_named():
    with pytest.raises(ValueError, match="no single-v1-multi-turn; it has single-v1, single-math-v1, single-math"):
        judge_prompts([ROWS[0], ROWS[1], ROWS[3]])
