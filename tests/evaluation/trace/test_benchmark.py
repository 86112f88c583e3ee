"""TRACE's tasks on small files of its form: what is asked, and how answers are scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.trace import TraceRow
from pipeline.data.sources.documents import LocalFiles
from pipeline.data.sources.rows import Row
from pipeline.evaluation.base import Workspace, score
from pipeline.evaluation.model.replies import Reply
from pipeline.evaluation.trace.benchmark import TASKS, Example, TraceTask
from pipeline.evaluation.trace.metrics import rouge_l, sari
from pipeline.models.architecture.tiny import byte_tokenizer

CONF = Path(__file__).parents[3] / "conf"
TEMPLATE = yaml.safe_load((CONF / "benchmark" / "tasks" / "trace.yaml").read_text())["template"]
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
        given = {"task": name, "rows": source, "template": TEMPLATE, **settings, "limit": None, **changes}
        return TraceTask(**given), inputs

    return make


class Answers:
    """Gives answers that were laid down, and keeps what it was asked."""

    window = 2048

    def __init__(self, *answers) -> None:
        self.answers, self.tokenizer = list(answers), byte_tokenizer()

    def turns(self, asked, ends, stop, temperature, progress):
        self.asked, self.ends, self.temperature = asked, ends, temperature
        progress(step=len(asked), total=len(asked), note="replies written")
        return [Reply(answer, False) for answer in self.answers]


def scored(made, *answers):
    benchmark, inputs = made
    outcome = benchmark.measure(Answers(*answers), inputs)
    return outcome.metric, [item.numerator for item in outcome.items]


def test_prompts_go_as_they_stand_and_answers_are_matched_letter_by_letter(task):
    rows = [{"prompt": f"p {i}", "answer": "A"} for i in range(4)]
    benchmark, inputs = task(rows=rows, temperature=0.1)
    model = Answers("A", " A", "", "A. because")
    outcome = benchmark.measure(model, inputs)
    prompts = [model.tokenizer.decode(turn.prompt) for turn in model.asked]
    begin = model.tokenizer.bos_token or ""
    assert prompts == [f"{begin}p {i}" for i in range(4)], "nothing stands around a prompt"
    assert model.ends == {model.tokenizer.eos_token_id} and {turn.length for turn in model.asked} == {8}
    assert len({turn.seed for turn in model.asked}) == 4 and model.temperature == 0.1
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


def test_what_is_asked_is_what_was_trained_on(task, tokenizer):
    """Py150 writes Llama's BOS out; the template puts one before every prompt. Learned is the answer with its end."""
    row = {"prompt": "<s> from a import b <EOL>", "answer": "c = 1"}
    assert yaml.safe_load((CONF / "data" / "trace.yaml").read_text())["template"] == TEMPLATE
    chat = TraceRow().chat(Row("0", row))
    encoder = ChatEncoder(tokenizer, TEMPLATE)
    ids, mask = encoder.encode(chat.messages)
    begin = tokenizer.bos_token or ""
    assert tokenizer.decode(ids) == f"{begin}from a import b <EOL>c = 1{tokenizer.eos_token}"
    assert tokenizer.decode(ids[mask.astype(bool)]) == f"c = 1{tokenizer.eos_token}"
    benchmark, inputs = task("Py150", [row])
    model = Answers("c = 1")
    benchmark.measure(model, inputs)
    assert model.asked[0].prompt == ids[~mask.astype(bool)].tolist()


def test_an_answer_must_have_room(task, llama, tokenizer):
    benchmark, inputs = task(max_new_tokens=2048)
    with pytest.raises(ValueError, match="max_new_tokens=2048 leaves no room in the model's 2048 positions"):
        benchmark.run(llama, tokenizer, inputs)


def test_an_answer_ends_with_what_the_template_closes_a_turn_with(task, tokenizer):
    """As every reply does: a template of one's own may close a turn before the text ends."""
    closing = str(tokenizer.convert_ids_to_tokens(min(tokenizer.all_special_ids)))
    closed = f"{{% if m.role == 'assistant' %}}{{{{ {closing!r} }}}}{{% endif %}}"
    template = f"{{% for m in messages %}}{{{{ m.content }}}}{closed}{{% endfor %}}"
    benchmark, inputs = task(template=template)
    model = Answers("B")
    model.tokenizer = tokenizer
    benchmark.measure(model, inputs)
    assert model.ends == {tokenizer.eos_token_id, min(tokenizer.all_special_ids)}


def test_progress_tells_how_many_answers_are_written(task, llama, tokenizer):
    benchmark, inputs = task(rows=[{"prompt": f"p {i}", "answer": "A"} for i in range(3)])
    told = []
    benchmark.run(llama, tokenizer, replace(inputs, progress=lambda **found: told.append(found)))
    assert told[-1] == {"step": 3, "total": 3, "note": "replies written"}
