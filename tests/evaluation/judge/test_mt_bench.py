"""MT-Bench against a real server: what is asked, what is kept, what happens when the judge fails."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.evaluation.base import Workspace, score
from pipeline.evaluation.judge import judging
from pipeline.evaluation.judge.mt_bench import IncompleteError, MTBench
from pipeline.evaluation.model.replies import ChatReplies
from tests.children import PATIENCE_S
from tests.evaluation.judge_server import serving, settings
from tests.evaluation.remote.test_endpoint import ROWS

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Shorter."]},
    {"question_id": 101, "category": "math", "turns": ["1+1?", "And 2+2?"]},
    {"question_id": 102, "category": "math", "turns": ["3*3?", "Squared?"]},
]
REFERENCES = [{"question_id": i, "choices": [{"turns": ["first gold", "second gold"]}]} for i in (101, 102)]
SETTINGS = {
    "reference_categories": ["math"],
    "judge": "judge-1",
    "judge_temperature": 0.0,
    "judge_max_tokens": 64,
    "template": None,
    "temperatures": {"writing": 0.7, "math": 0.0},
    "max_new_tokens": 6,
    "seed": 0,
    "max_items": None,
    "max_unrated": 0.0,
}


@pytest.fixture
def make(local):
    def make(**changes):
        sources = {"questions": QUESTIONS, "prompts": ROWS, "references": REFERENCES}
        given = {name: local(name, changes.pop(name, rows)) for name, rows in sources.items()}
        return MTBench(**given, **{**SETTINGS, **changes})

    return make


@pytest.fixture
def at(inputs, tmp_path):
    """Workspace that keep in a directory and reach an endpoint."""
    (tmp_path / "kept").mkdir()
    return lambda endpoint: replace(inputs, directory=tmp_path / "kept", endpoint=endpoint)


def lines(inputs: Workspace, name: str) -> list[dict]:
    return [json.loads(line) for line in (inputs.directory / name).read_text().splitlines()]


def by_turn(body: dict, number: int) -> str:
    """7 for a first turn, 4 for a second; 9 where a reference was given."""
    content = body["messages"][1]["content"]
    second = content.count("|")
    return f"Because. [[{9 if 'gold' in content else 4 if second else 7}]]"


def test_every_turn_is_rated_and_a_question_is_one_item(make, at, llama, tokenizer):
    with serving(by_turn) as (judge, endpoint):
        inputs = at(endpoint)
        outcome = make().run(llama, tokenizer, inputs)
    items = {item.id: item for item in outcome.items}
    assert [(i.category, i.numerator, i.denominator) for i in (items["81"], items["101"])] == [
        ("writing", 11.0, 2.0),
        ("math", 18.0, 2.0),
    ]
    assert items["81"].parts == {"turn 1": (7.0, 1.0), "turn 2": (4.0, 1.0)}
    assert score(outcome.items).value == pytest.approx((7 + 4 + 4 * 9) / 6) and outcome.notes == ()
    assert len(judge.requests) == 6 and "first gold" in items["101"].gold
    answers = {record["id"]: record["turns"] for record in lines(inputs, "answers.jsonl")}
    asked = [body["messages"][1]["content"] for body in judge.requests]
    assert f"Write a line.|{answers['81'][0]}|Shorter.|{answers['81'][1]}" in asked
    assert not (inputs.directory / "partial.json").exists()


def test_the_second_turn_sees_the_first_and_sampling_hangs_on_the_seed(make, at, llama, tokenizer):
    with serving(by_turn) as (_, endpoint):
        inputs = at(endpoint)
        make().run(llama, tokenizer, inputs)
        first = lines(inputs, "answers.jsonl")
        for changes in ({}, {"seed": 1}):
            (inputs.directory / "answers.jsonl").unlink()
            make(**changes).run(llama, tokenizer, inputs)
            again = lines(inputs, "answers.jsonl")
            same = [a["turns"] == b["turns"] for a, b in zip(first, again, strict=True)]
            greedy = [record["category"] == "math" for record in first]
            assert all(same) if not changes else same == greedy


def test_a_judge_that_goes_down_leaves_a_partial_result_that_resumes(make, at, llama, tokenizer, monkeypatch):
    """Half of the judgements come; then nothing. The next attempt asks for the rest alone and answers nothing again."""

    def failing(body, number):
        return by_turn(body, number) if number < 3 else (503, {}, "overloaded")

    with serving(failing) as (_, endpoint):
        inputs = at({**endpoint, "num_parallel": 1})
        with pytest.raises(IncompleteError, match=r"3 of 6 turns are rated, mean so far .*HTTP 503.*the same command"):
            make().run(llama, tokenizer, inputs)
    partial = json.loads((inputs.directory / "partial.json").read_text())
    assert (partial["complete"], partial["num_rated"], partial["num_turns"]) == (False, 3, 6)
    assert partial["mean"] == pytest.approx(sum(r["rating"] for r in lines(inputs, "judgements.jsonl")) / 3)
    answers = (inputs.directory / "answers.jsonl").read_text()
    monkeypatch.setattr(ChatReplies, "replies", None)  # no answer is made twice
    with serving(by_turn) as (judge, endpoint):
        outcome = make().run(llama, tokenizer, replace(inputs, endpoint=endpoint))
    assert len(judge.requests) == 3 and len(outcome.items) == 3
    assert (inputs.directory / "answers.jsonl").read_text() == answers
    assert not (inputs.directory / "partial.json").exists()


def test_garbage_is_left_out_and_said_or_refused(make, at, llama, tokenizer):
    def sometimes(body, number):
        return "No opinion." if "Shorter." in body["messages"][1]["content"] else by_turn(body, number)

    with serving(sometimes) as (judge, endpoint):
        inputs = at(endpoint)
        with pytest.raises(IncompleteError, match=r"5 of 6 turns are rated.*the judge gave no rating: 'No opinion.'"):
            make().run(llama, tokenizer, inputs)
        assert len(judge.requests) == 5 + endpoint["num_attempts"]
        outcome = make(max_unrated=0.2).run(llama, tokenizer, inputs)
        assert len(judge.requests) == 5 + 2 * endpoint["num_attempts"]  # what was rated is not asked again
    item = next(item for item in outcome.items if item.id == "81")
    assert (item.numerator, item.denominator) == (7.0, 1.0) and "[judge: no rating]" in item.answer
    assert outcome.notes == ("1 of 6 turns have no rating, because the judge gave none; they are left out.",)


def test_a_refused_turn_is_left_out_like_one_without_a_rating(make, at, llama, tokenizer):
    """A content filter, a text that is too long: the same turn is refused for ever, the others are not."""

    def filtered(body, number):
        if "Shorter." in body["messages"][1]["content"]:
            return (400, {}, "the content filter was triggered")
        return by_turn(body, number)

    with serving(filtered) as (judge, endpoint):
        inputs = at(endpoint)
        with pytest.raises(IncompleteError, match=r"5 of 6 turns are rated.*HTTP 400.*content filter was triggered"):
            make().run(llama, tokenizer, inputs)
        partial = json.loads((inputs.directory / "partial.json").read_text())
        assert partial["num_rated"] == 5 and "content filter" in partial["reason"]
        assert len(lines(inputs, "judgements.jsonl")) == len(judge.requests) == 6  # and none was asked for twice
        outcome = make(max_unrated=0.2).run(llama, tokenizer, inputs)
    item = next(item for item in outcome.items if item.id == "81")
    assert item.denominator == 1.0 and "[judge: no rating]" in item.answer and "HTTP 400" in item.answer
    assert outcome.notes[0].startswith("1 of 6 turns have no rating")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_judge_that_refuses_everything_is_asked_no_further(make, at, llama, tokenizer, status, monkeypatch):
    """What was under way is kept, and the partial result says why."""
    waiting, is_over = threading.Barrier(2), threading.Event()
    first = [is_over]
    monkeypatch.setattr(
        judging, "threading", SimpleNamespace(Event=lambda: first.pop() if first else threading.Event())
    )

    def refusing(body, number):
        if number in (1, 2):  # one is refused while the other is still thinking
            waiting.wait(PATIENCE_S)
        if number == 2:
            is_over.wait(PATIENCE_S)
        return (status, {}, "no such key") if number == 1 else by_turn(body, number)

    with serving(refusing) as (judge, endpoint):
        inputs = at({**endpoint, "num_parallel": 2})
        with pytest.raises(IncompleteError, match=rf"2 of 6 turns are rated.*HTTP {status}.*no such key.*same command"):
            make().run(llama, tokenizer, inputs)
    assert len(judge.requests) == 3 and len(lines(inputs, "judgements.jsonl")) == 2
    assert json.loads((inputs.directory / "partial.json").read_text())["num_rated"] == 2
    with serving(by_turn) as (judge, endpoint):
        assert len(make().run(llama, tokenizer, replace(inputs, endpoint=endpoint)).items) == 3
    assert len(judge.requests) == 4


def test_a_torn_record_is_made_again_and_a_damaged_one_is_named(make, at, llama, tokenizer):
    with serving(by_turn) as (judge, endpoint):
        inputs = at(endpoint)
        make().run(llama, tokenizer, inputs)
        file = inputs.directory / "judgements.jsonl"
        file.write_text(file.read_text()[:-9])
        make().run(llama, tokenizer, inputs)
        assert len(judge.requests) == 7 and len(lines(inputs, "judgements.jsonl")) == 6
        file.write_text("{damaged\n" + file.read_text())
        with pytest.raises(ValueError, match="line 1 is damaged"):
            make().run(llama, tokenizer, inputs)


def test_a_judge_changes_the_items_and_the_way_to_it_does_not(make, at, llama, tokenizer):
    with serving(by_turn) as (_, endpoint):
        inputs = at(endpoint)
        first = make().run(llama, tokenizer, inputs)
        parallel = make().run(llama, tokenizer, replace(inputs, endpoint={**endpoint, "num_parallel": 7}))
        other = make(judge="judge-2").run(llama, tokenizer, inputs)
    assert [item.hash for item in first.items] == [item.hash for item in parallel.items]
    assert not {item.hash for item in first.items} & {item.hash for item in other.items}


def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded(make, inputs, tmp_path, make_model):
    import shutil

    directory = tmp_path / "plain"
    shutil.copytree(make_model(), directory)
    (directory / "chat_template.jinja").unlink()
    reachable = replace(inputs, endpoint=settings("http://localhost:1/v1"))
    with pytest.raises(ValueError, match=r"plain has no chat template.*`template`.*`models`.*\[tuned\]"):
        make().prepare(directory, reachable)
    make(template="{{ messages }}").prepare(directory, reachable)
    make().prepare(Path(make_model()), reachable)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": REFERENCES[:1]}, "question 102 .math. has no reference answer"),
        (
            {"questions": [{"question_id": 1, "category": "poetry", "turns": ["?"]}]},
            r"\['poetry'\] have no temperature",
        ),
        ({"questions": [{"question_id": 1, "turns": ["?"]}]}, "needs question_id, category and turns"),
        ({"questions": [{"question_id": 1, "category": "math", "turns": ["?"] * 3}]}, "has 3 turns"),
        ({"prompts": ROWS[:2]}, "no single-math-v1-multi-turn, single-v1-multi-turn"),
    ],
    ids=["references", "category", "row", "turns", "prompts"],
)
def test_files_that_will_not_do_are_named(make, inputs, make_model, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes).prepare(Path(make_model()), replace(inputs, endpoint=settings("http://localhost:1/v1")))


def test_wrong_settings_are_refused(make):
    with pytest.raises(ValueError, match="max_unrated=1"):
        make(max_unrated=1)
    with pytest.raises(ValueError, match="at least 1"):
        make(max_items=0)
