"""TRACE's tasks on small files of its form: what is asked, and how answers are scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.data.sources.documents import LocalFiles
from pipeline.evaluation.base import Workspace, score
from pipeline.evaluation.trace.benchmark import TASKS, Example, TraceTask
from pipeline.evaluation.trace.metrics import rouge_l, sari

PROMPT = "Provide a simplified version.\n\nParagraph:\nDer alte Hund bellt.\n\nSimplification:"


@pytest.fixture
def task(tmp_path):
    """A task of these rows, and what it may read."""

    def make(name="FOMC", rows=({"prompt": "Text: up\nStance:", "answer": "B"},), text=None, **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "test.json").write_text(json.dumps(rows) if text is None else text)
        source = LocalFiles({"kind": "local", "path": str(folder)})
        settings = {"faithful": True, "max_prompt_tokens": 1024, "max_new_tokens": 8, "temperature": 0.0, "seed": 0}
        inputs = Workspace(lambda one: Path(one["path"]), lambda one: ["test.json"])
        return TraceTask(**{"task": name, "rows": source, **settings, "limit": None, **changes}), inputs

    return make


class Answers:
    """Gives answers that were laid down, and keeps what it was asked."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)

    def generate(self, prompts, settings):
        self.prompts, self.settings = prompts, settings
        return [[answer] for answer in self.answers]


def scored(made, *answers):
    benchmark, inputs = made
    outcome = benchmark.measure(Answers(*answers), inputs)
    return outcome.metric, [item.numerator for item in outcome.items]


def test_prompts_go_as_they_stand_and_answers_are_matched_letter_by_letter(task):
    rows = [{"prompt": f"p {i}", "answer": "A"} for i in range(4)]
    benchmark, inputs = task(rows=rows, temperature=0.1)
    model = Answers("A", " A", "", "A. because")
    outcome = benchmark.measure(model, inputs)
    assert model.prompts == ["p 0", "p 1", "p 2", "p 3"]
    assert (model.settings.max_prompt_tokens, model.settings.max_new_tokens, model.settings.temperature) == (
        1024,
        8,
        0.1,
    )
    assert [item.numerator for item in outcome.items] == [1.0, 0.0, 0.0, 0.0]
    assert score(outcome.items).value == 0.25, "an empty answer stays in the denominator"
    assert outcome.metric == "exact_match" and outcome.items[0].gold == "A"
    assert scored(task(rows=rows, faithful=False), "A", " A", "", "A. because")[1] == [1.0, 1.0, 0.0, 0.0]


def test_the_first_character_answers_a_question_with_reasons(task):
    rows = [{"prompt": str(i), "answer": "B\nIt is so."} for i in range(3)]
    answers = ("B\nI think so.", "\nB", "Because")
    assert scored(task("ScienceQA", rows), *answers)[1] == [1.0, 0.0, 1.0]
    assert scored(task("ScienceQA", rows, faithful=False), *answers)[1] == [1.0, 1.0, 1.0]


def test_a_summary_is_scored_the_wrong_way_round_as_trace_does(task):
    wanted = "of bill. vote committee committee committee committee of moved approve"
    written = "approve passed. vote the in of committee the approve a"
    rows = [{"prompt": "p", "answer": wanted}]
    assert scored(task("MeetingBank", rows), written) == ("rouge_l", [rouge_l(wanted, written)])
    assert scored(task("MeetingBank", rows, faithful=False), written)[1] == [rouge_l(written, wanted)]
    assert rouge_l(wanted, written) > rouge_l(written, wanted) + 0.1
    assert scored(task("MeetingBank", rows), "")[1] == [0.0]


def test_code_is_compared_without_its_placeholders(task):
    rows = [{"prompt": "p", "answer": "x = <STR_LIT:name> <EOL>"}]
    assert scored(task("Py150", rows), "x = name <EOL>") == ("edit_similarity", [1.0])
    assert scored(task("Py150", rows), "y = name <EOL>")[1] == [0.93]
    assert scored(task("Py150", rows, faithful=False), "y = name <EOL>")[1] == [pytest.approx(13 / 14)]


def test_a_simplification_is_held_against_the_whole_prompt_as_trace_does(task):
    rows = [{"prompt": PROMPT, "answer": "Der Hund bellt."}]
    metric, faithful = scored(task("20Minuten", rows), "Der Hund bellt.")
    assert (metric, faithful) == ("sari", [sari(PROMPT, "Der Hund bellt.", ["Der Hund bellt."])])
    wanted = sari("Der alte Hund bellt.", "Der Hund", ["Der Hund bellt."])
    assert scored(task("20Minuten", rows, faithful=False), "Der Hund")[1] == [wanted]
    assert wanted != sari(PROMPT, "Der Hund", ["Der Hund bellt."])


def test_every_score_is_a_share_of_one(task):
    for name, (_, scorer) in TASKS.items():
        for written in ("", "A", "A\nthe same. again", "<NUM_LIT:1>"):
            assert 0.0 <= scorer(written, Example("p", "A\nthe same"), True) <= 1.0, name


def test_the_same_rows_whatever_their_order(task):
    rows = [{"prompt": f"p {i}", "answer": "A"} for i in range(30)]
    benchmark, inputs = task(rows=rows, limit=5)
    chosen = {example.prompt for example in benchmark.examples(inputs).values()}
    benchmark, inputs = task(rows=rows[::-1], limit=5)
    assert {example.prompt for example in benchmark.examples(inputs).values()} == chosen and len(chosen) == 5


def test_a_long_prompt_loses_its_beginning(task, llama, tokenizer):
    """The model sees the last tokens alone: prompts that differ before them have the same answer."""
    rows = [{"prompt": f"{start * 40} the same end of it", "answer": "A"} for start in ("x", "y")]
    benchmark, inputs = task(rows=rows, max_prompt_tokens=12, max_new_tokens=6)
    one, other = (item.answer for item in benchmark.run(llama, tokenizer, inputs).items)
    assert one == other
    benchmark, inputs = task(rows=rows, max_new_tokens=6)
    one, other = (item.answer for item in benchmark.run(llama, tokenizer, inputs).items)
    assert one != other


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": []}, "row test.json is empty"),
        ({"rows": [{"prompt": "p"}]}, "row 0 must have prompt and answer, both text; it has {'prompt': 'str'}"),
        ({"rows": [{"prompt": "p", "answer": 8}]}, "'answer': 'int'"),
    ],
)
def test_a_file_of_another_form_is_refused(task, changes, told):
    benchmark, inputs = task(**changes)
    with pytest.raises(ValueError, match="FOMC") as caught:
        benchmark.prepare(Path(), inputs)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "FOCM"}, "task='FOCM' is not one of TRACE's; use C-STANCE, FOMC"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(task, changes, told):
    with pytest.raises(ValueError, match=told):
        task(**changes)
