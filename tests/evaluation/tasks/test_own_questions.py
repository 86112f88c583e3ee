"""A file of one's own questions: what an answer may be, what is refused with file and line, and how it is scored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.data.sources.documents import LocalFiles
from pipeline.evaluation.base import Workspace, score
from pipeline.evaluation.tasks.own_questions import OwnQuestions

PROMPT = "Question: {question}\nAnswer:"
OPTIONS = ["trout", "whale", "gecko"]


def written(tmp_path: Path, *rows) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def own(file: Path, limit: int | None = None) -> tuple[OwnQuestions, Workspace]:
    benchmark = OwnQuestions(LocalFiles({"kind": "local"}), PROMPT, limit)
    return benchmark, Workspace(lambda source: file, lambda source: [file.name])


def read(tmp_path: Path, *rows):
    benchmark, inputs = own(written(tmp_path, *rows))
    return benchmark.questions(inputs)


class Scores:
    """A model object of lm-evaluation-harness that finds each continuation as likely as a table says."""

    def __init__(self, table: dict[str, tuple[float, bool]]) -> None:
        self.table, self.asked = table, []

    def loglikelihood(self, requests):
        self.asked += [request.args for request in requests]
        return [self.table[request.args[1]] for request in requests]


@pytest.mark.parametrize("answer", ["whale", "B", "b", 1, "1", " whale "])
def test_an_answer_is_a_text_a_letter_or_an_index(tmp_path, answer):
    ((question,), unread) = read(tmp_path, {"question": "A mammal?", "options": OPTIONS, "answer": answer, "id": 7})
    assert question.options[question.right] == "whale" and unread == ["id"]


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        ({"A": "trout", "B": "whale"}, "B", "whale"),
        ({"1": "trout", "2": "whale"}, "1", "trout"),
        ({"1": "trout", "2": "whale"}, 2, "whale"),
        ([10, 20], 20, "20"),
        (["yes", "no"], "no", "no"),
        (["A", "B"], "B", "B"),
    ],
)
def test_options_may_bring_their_letters_and_be_numbers(tmp_path, options, answer, right):
    ((question,), _) = read(tmp_path, {"question": "Which?", "options": options, "answer": answer})
    assert question.options[question.right] == right


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "Q", "options": OPTIONS},
            r"has no answer; give one of the options, a letter from A to C, or an index",
        ),
        (
            {"question": "Q", "options": OPTIONS, "answer": 3},
            r"answer=3 names none of the 3 options; .* index from 0 to 2",
        ),
        ({"question": "Q", "options": OPTIONS, "answer": "D"}, r"answer='D' names none of the 3 options"),
        ({"question": "Q", "options": OPTIONS, "answer": True}, r"answer=True must be one of the options"),
        ({"question": "Q", "options": OPTIONS, "answer": ["whale"]}, r"answer=\['whale'\] must be one of"),
        ({"question": "Q", "options": OPTIONS, "answer": 1.0}, r"answer=1.0 must be one of the options"),
        (
            {"question": "Q", "options": ["B", "A"], "answer": "A"},
            r"answer='A' may mean 'B' and 'A': as text, letter or",
        ),
        ({"question": "Q", "options": ["1", "2", "3"], "answer": 2}, r"answer=2 may mean '2' and '3'"),
        ({"question": "Q", "options": "abc", "answer": "a"}, r"options='abc' must be a list of two or more texts"),
        ({"question": "Q", "options": ["a"], "answer": "a"}, r"options=\['a'\] must be a list of two or more texts"),
        ({"question": "Q", "options": ["a", "a"], "answer": "a"}, r"options has 'a' more than once"),
        ({"question": "Q", "options": ["a", None], "answer": "a"}, r"has no options\[1\]"),
        ({"question": "Q", "options": ["a", ""], "answer": "a"}, r"options\[1\]='' must be text that is not empty"),
        (
            {"query": "Q", "options": OPTIONS, "answer": 1},
            r"has no question; it has the columns query, options, answer",
        ),
        ({"question": 7, "options": OPTIONS, "answer": 1}, r"question=7 must be text"),
        ({"question": "Q"}, r"has no answer; it has the columns question"),
        ({"question": "Q", "answer": {"text": "a"}}, r"answer=\{'text': 'a'\} must be text"),
        ({"question": "Q", "answer": "a"}, r"has no options, while other rows have"),
        ('{"question": "Q", "options"', r"invalid JSON"),
        ("[1]", r"not a JSON object|invalid JSON"),
        ('{"question": "Q", "question": "R", "answer": "a"}', r"duplicate key"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_file_and_line(tmp_path, row, message):
    good = {"question": "A mammal?", "options": OPTIONS, "answer": 1}
    with pytest.raises(ValueError, match=rf"(?s)questions: 1;.*questions\.jsonl, line 3: .*{message}"):
        read(tmp_path, good, good, row)


def test_many_wrong_rows_are_counted_and_an_empty_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)questions: 8;.*line 5.*and 3 more"):
        read(tmp_path, *[{"question": "Q"}] * 8)
    with pytest.raises(ValueError, match=r"questions\.jsonl: empty"):
        read(tmp_path)


def test_options_are_ranked_per_character(tmp_path):
    rows = [{"question": f"Q{i}", "options": ["ab", "abcdefgh"], "answer": i} for i in range(2)]
    benchmark, inputs = own(written(tmp_path, *rows))
    lm = Scores({" ab": (-3.0, False), " abcdefgh": (-8.0, False)})  # -1.5 and -1 a character
    outcome = benchmark.score(lm, inputs)
    assert [(one.numerator, one.answer, one.gold) for one in outcome.items] == [
        (0.0, "abcdefgh", "ab"),
        (1.0, "abcdefgh", "abcdefgh"),
    ]
    assert outcome.metric == "acc_norm" and score(outcome.items).value == 0.5
    assert lm.asked[0] == ("Question: Q0\nAnswer:", " ab")
    first, second = (one.gold_loss for one in outcome.items)  # bits of the right option, and of it at the wrong's rate
    assert (first.num_bytes, second.num_bytes) == (2, 8)
    assert (first.bits, second.bits) == pytest.approx((3 / math.log(2), 8 / math.log(2)))
    assert (first.margin_bits, second.margin_bits) == pytest.approx((-1 / math.log(2), 4 / math.log(2)))


def test_an_answer_alone_is_right_where_greedy_decoding_writes_it(tmp_path):
    rows = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "6 x 7?", "answer": 42}]
    benchmark, inputs = own(written(tmp_path, *rows))
    outcome = benchmark.score(Scores({" Paris": (-1.0, True), " 42": (-0.1, False)}), inputs)
    assert [one.numerator for one in outcome.items] == [1.0, 0.0] and outcome.metric == "acc"
    assert outcome.items[0].id == "questions.jsonl, line 1"
    assert [one.gold_loss.bits for one in outcome.items] == pytest.approx([1 / math.log(2), 0.1 / math.log(2)])
    assert [one.gold_loss.num_bytes for one in outcome.items] == [5, 2]


def test_a_limit_takes_the_same_questions_whatever_their_order(tmp_path):
    rows = [{"question": f"Q{i}", "answer": "x"} for i in range(9)]
    lm = Scores({" x": (-1.0, True)})
    chosen = []
    for order in (rows, rows[::-1]):
        benchmark, inputs = own(written(tmp_path, *order), limit=3)
        chosen.append({one.prompt for one in benchmark.score(lm, inputs).items})
    assert chosen[0] == chosen[1] and len(chosen[0]) == 3


@pytest.mark.parametrize(
    ("prompt", "limit", "message"), [("Answer:", None, "does not hold {question}"), (PROMPT, 0, "limit=0 must be")]
)
def test_settings_that_make_no_sense(prompt, limit, message):
    with pytest.raises(ValueError, match=message):
        OwnQuestions(LocalFiles({"kind": "local"}), prompt, limit)
