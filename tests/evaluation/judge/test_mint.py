"""MINT's episodes, sessions and grading. The model is scripted; sessions run trusted code in a plain subprocess."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.data.sources.documents import LocalFiles
from pipeline.evaluation.base import score
from pipeline.evaluation.judge import mint
from pipeline.evaluation.judge.grading import GRADES
from pipeline.evaluation.judge.mint import Mint, MintTask, Problem, parse
from pipeline.evaluation.judge.session import MAX_OUTPUT, Session
from pipeline.evaluation.model.replies import Reply
from pipeline.evaluation.sandbox import Limits, Sandbox, SandboxError, check_isolation
from tests.children import PATIENCE_S

SETTINGS = {
    "instructions": "Turns: {num_turns}, solutions: {num_solutions}. {tools} Task: {task}",
    "tools": None,
    "turn_limits": [1, 2],
    "max_solutions": 2,
    "template": None,
    "max_new_tokens": 8,
    "max_items": None,
    "limits": Limits(5, PATIENCE_S, 1024, 16, 16, 64, []),
}


def isolates(level: str) -> bool:
    """Whether this machine can shut a program in as far as that."""
    try:
        Sandbox(SETTINGS["limits"], level, 1).close()
    except SandboxError:
        return False
    return True


def run(code: str) -> SimpleNamespace:
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    return SimpleNamespace(ok=done.returncode == 0, stdout=done.stdout, stderr=done.stderr)


def untouched(code: str) -> SimpleNamespace:
    raise AssertionError("nothing should be run")


@pytest.fixture
def make(local):
    def make(rows=({"id": 0, "prompt": "6*7?", "reference": "42"},), grading="short_answer", **changes):
        tasks = {"gsm8k": MintTask(local("rows", list(rows)), "reasoning", grading)}
        return Mint(tasks=tasks, **{**SETTINGS, **changes})

    return make


@pytest.fixture
def problem(make):
    return Problem("gsm8k/0", make().tasks["gsm8k"], {"id": 0, "prompt": "6*7?", "reference": "42"})


def play(make, problem, limit, *said, **changes):
    """Plays an episode with a model that says its lines in turn; also returns those that were not asked for."""
    episode, left = make(**changes).episode(problem, limit, Session(run)), list(said)
    next(episode)
    while True:
        try:
            episode.send(left.pop(0))
        except StopIteration as end:
            messages, success = end.value
            return success, messages, left


def test_code_is_run_and_a_right_solution_ends_the_episode(make, problem):
    success, messages, left = play(
        make,
        problem,
        5,
        "<thought>hm</thought><execute>x = 6\nprint(x * 7)</execute>",
        "<solution>42</solution>",
        "more",
    )
    assert success and len(messages) == 4 and left == ["more"]
    assert messages[0]["content"] == "Turns: 5, solutions: 2.  Task: 6*7?"
    assert messages[2]["content"] == "Output:\n42\nTurns left: 4. Solutions left: 2."


@pytest.mark.parametrize(
    ("limit", "said", "turns", "success"),
    [
        (1, ["<solution>14</solution>", "<solution>42</solution>"], 1, False),
        (2, ["<solution>14</solution>", "<solution>42</solution>"], 2, True),
        (5, ["<solution>14</solution>", "<solution>13</solution>", "<solution>42</solution>"], 2, False),
        (5, ["<solution></solution>", "<solution> </solution>", "<solution>42</solution>"], 2, False),
        (3, ["42", "no idea", "<solution>42</solution>"], 3, True),
        (2, ["42", "no idea", "<solution>42</solution>"], 2, False),
        (2, ["<execute></execute>", "<solution>42"], 2, True),
        (3, ["<execute>1/0</execute>", "<execute>print(", "<solution>42</solution>"], 3, True),
    ],
    ids=str,
)
def test_turns_and_solutions_are_counted(make, problem, limit, said, turns, success):
    """A single turn has one solution, else there are two; what cannot be read costs a turn, an empty solution both."""
    found, messages, _ = play(make, problem, limit, *said)
    assert found is success and sum(message["role"] == "assistant" for message in messages) == turns


def test_what_went_wrong_is_said(make, problem):
    said = ["nothing useful", "<execute>1/0</execute>", "<solution>14</solution>", "<execute>pass</execute>", "end"]
    _, messages, _ = play(make, problem, 5, *said)
    observations = [message["content"] for message in messages[2::2]]
    assert observations[0].startswith("No <execute> or <solution> block") and "Turns left: 4" in observations[0]
    assert "ZeroDivisionError" in observations[1] and "_session" not in observations[1]
    assert observations[2] == "That solution is not right.\nTurns left: 2. Solutions left: 1."
    assert observations[3].startswith("Output:\n(nothing was printed)")


def test_a_session_remembers_and_shows_the_last_value():
    session = Session(run)
    assert session.execute("import math\na = [1]\nprint('once')") == "once"
    assert session.execute("a.append(2)\na") == "[1, 2]"
    assert "NameError" in session.execute("b")
    assert session.execute("b = 3\nraise SystemExit").endswith("SystemExit")
    assert session.execute("a, b, math.floor(2.5)") == "([1, 2], 3, 2)"
    assert session.execute("def f():\n    return 'x' * 5000\nprint(f())").endswith("[cut: 5,000 characters]")
    assert len(session.execute("f()")) < MAX_OUTPUT + 50
    assert session.execute("'''quotes \" and \\\\ '''") == repr('quotes " and \\ ')
    assert "stopped" in session.execute("import os; os._exit(3)")
    assert Session(run, "def lookup(x):\n    return x + 1").execute("lookup(1)") == "2"


def test_blocks_are_parsed():
    assert parse("<thought>a</thought>\n<execute>\nprint(1)\n</execute>") == ("execute", "print(1)")
    assert parse("<execute>```python\nx\n```</execute>") == ("execute", "x")
    assert parse("it is <solution> 4 </solution> <solution>5</solution>") == ("solution", "4")
    assert parse("<solution>4") == ("solution", "4") and parse("four") == ("", "")


@pytest.mark.parametrize(
    ("grading", "row", "right", "wrong"),
    [
        ("short_answer", {"reference": "42"}, ["42", " 42.0 ", "43.5", "it is 42."], ["44.5", "forty-two", "4"]),
        ("short_answer", {"reference": "Yes"}, ["yes", "YES, both"], ["no"]),
        (
            "option",
            {"reference": "c", "prompt": "Which?\nOptions: A ) 6 , B ) 121 , C ) 18107 , D ) 54,320"},
            ["c", "C)", "(C)", "C ) 18107", "18107", "The answer is 18107"],
            ["a", "B", "121", "18107 or 121", "d) 18107", "because of that", ""],
        ),
        ("theorem", {"reference": True, "answer_type": "bool"}, ["True", "yes"], ["False", "maybe", ""]),
        ("theorem", {"reference": 7, "answer_type": "integer"}, ["7", "x = 7", "7.2", "$7$"], ["8", "7, 8", "[7]"]),
        (
            "theorem",
            {"reference": 0.5, "answer_type": "float"},
            ["0.51", "1/2", "approximately 0.5 meters", "5 * 10^-1", "5e-1"],
            ["0.53", "1/0", "half"],
        ),
        (
            "theorem",
            {"reference": [0, 5], "answer_type": "list of integer"},
            ["[0, 5]", "(5, 0)", "x = [0.0, 5]"],
            ["[0, 6]", "[0]", "0, ", "[0, 'a']", "[" * 500, "__import__('os')"],
        ),
        ("theorem", {"reference": "(b)", "answer_type": "option"}, ["b", "(b)", "B"], ["(c)", "none"]),
    ],
)
def test_solutions_are_graded(grading, row, right, wrong):
    grade = GRADES[grading]
    row = {"prompt": "", **row}
    for solution in right:
        assert grade(solution, row, untouched), solution
    for solution in wrong:
        assert not grade(solution, row, untouched), solution


def test_code_is_graded_by_its_tests():
    human = {
        "prompt": 'from typing import List\n\ndef total(xs: List[int]) -> int:\n    """Sum."""',
        "reference": "assert total([1, 2]) == 3",
    }
    for right in ("def total(xs: List[int]) -> int:\n    return sum(xs)", "    return sum(xs)"):
        assert GRADES["tests"](right, human, run)
    for wrong in ("    return 0", "def total(xs):\n    return", "import sys; sys.exit(0", "def other(): pass"):
        assert not GRADES["tests"](wrong, human, run)
    mbpp = {"prompt": '"""\nAdd.\nassert add(1)==2\n"""\n', "reference": "assert add(1)==2\nassert add(2)==3"}
    assert GRADES["tests"]("def add(x):\n    return x + 1", mbpp, run)
    assert not GRADES["tests"]("def add(x):\n    return 2", mbpp, run)


ROWS = [{"id": i, "prompt": f"{i}+0?", "reference": str(i)} for i in range(1, 4)]


@pytest.fixture
def kept(inputs, tmp_path):
    (tmp_path / "kept").mkdir()
    return replace(inputs, directory=tmp_path / "kept", isolation="limits")


def scripted(monkeypatch, reply):
    """Replace the model: `reply` is given a conversation and returns what is said next."""

    class Scripted:
        def __init__(self, speaker, template):
            assert speaker is None

        def replies(self, conversations, **_):
            return [Reply(reply(messages), False) for messages in conversations]

    monkeypatch.setattr(mint, "ChatReplies", Scripted)


TOOLS = "def wikipedia_search(query):\n    return f'nothing on {query}'\n"
PLAYED = {
    "1": ["<execute>a = 20\nwikipedia_search('tea')</execute>", "<execute>print(a + 1)</execute>", "<solution>1"],
    "2": [
        "<execute>import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)</execute>",
        "<execute>print(open('/etc/passwd').read())</execute>",
        "<solution>9</solution>",
    ],
    "3": [
        "<execute>import os\nopen('kept.txt', 'w').write('x')\nprint(os.listdir('HOME'))</execute>",
        "<execute>while True: pass</execute>",
        "<solution>3</solution>",
    ],
}


@pytest.mark.skipif(not isolates("full"), reason="this machine gives programs no namespaces of their own")
def test_what_a_model_runs_is_shut_in(make, kept, local, monkeypatch, tmp_path):
    """The whole path but for the model: episodes side by side, sessions, tools, several workers, the real sandbox."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret.txt").write_text("secret")
    tools = tmp_path / "tools.py"
    tools.write_text(TOOLS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        texts = {"PORT": str(listener.getsockname()[1]), "HOME": str(home)}

        def reply(messages):
            number = messages[0]["content"].partition("Task: ")[2][0]
            text = PLAYED[number][len(messages) // 2]
            for name, value in texts.items():
                text = text.replace(name, value)
            return text

        scripted(monkeypatch, reply)
        source = {"kind": "local", "path": str(tools)}
        played = make(
            ROWS, turn_limits=[3], limits=Limits(1, 15, 512, 16, 16, 64, []), tools=LocalFiles(source)
        ).measure(None, replace(kept, isolation="full", workers=3))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody came
    assert [item.numerator for item in played.items] == [1.0, 0.0, 1.0]
    lines = [json.loads(line) for line in (kept.directory / mint.EPISODES).read_text().splitlines()]
    said = {line["id"][-1]: [m["content"] for m in line["messages"][2::2]] for line in lines}
    assert said["1"][0].startswith("Output:\n'nothing on tea'") and said["1"][1].startswith("Output:\n21\n")
    assert "Error" in said["2"][0] and "socket" in said["2"][0]
    assert "/etc/passwd" in said["2"][1] and "FileNotFoundError" in said["2"][1] and "root:" not in said["2"][1]
    assert "FileNotFoundError" in said["3"][0] and "secret" not in said["3"][0]
    assert "Output:" in said["3"][1] and "printed" not in said["3"][1]  # it was stopped, and that is said
    assert not (Path.cwd() / "kept.txt").exists() and (home / "secret.txt").read_text() == "secret"


def test_success_is_counted_at_every_limit_and_episodes_are_kept(make, kept, monkeypatch):
    """Problem 1 is solved at once, 2 in the second turn, 3 never; a run that stops goes on where it stopped."""
    says = {"1": ["<solution>1</solution>"], "2": ["hm", "<solution>2</solution>"], "3": ["hm", "hm"]}
    asked = []

    def reply(messages):
        number = messages[0]["content"].partition("Task: ")[2][0]
        asked.append(number)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return says[number][len(messages) // 2]

    monkeypatch.setattr(mint, "TOGETHER", 2)
    scripted(monkeypatch, reply)
    with pytest.raises(KeyboardInterrupt):
        make(ROWS).measure(None, kept)
    done = (kept.directory / mint.EPISODES).read_text().splitlines()
    outcome = make(ROWS).measure(None, kept)
    lines = [json.loads(line) for line in (kept.directory / mint.EPISODES).read_text().splitlines()]
    assert len(done) == 3 and len(lines) == 6 and [json.dumps(line) for line in lines[:3]] == done
    assert score(outcome.items).value == pytest.approx(2 / 3)
    parts = {item.id: {name: a for name, (a, _) in item.parts.items()} for item in outcome.items}
    assert parts == {
        "gsm8k/1": {"k=1": 1.0, "k=2": 1.0},
        "gsm8k/2": {"k=1": 0.0, "k=2": 1.0},
        "gsm8k/3": {"k=1": 0.0, "k=2": 0.0},
    }
    assert outcome.items[0].category == "reasoning" and "<solution>" in outcome.items[0].answer


def test_a_real_model_plays_and_stops_at_a_closing_tag(make, kept, llama, tokenizer):
    outcome = make(ROWS, turn_limits=[1], max_items=2).run(llama, tokenizer, kept)
    assert len(outcome.items) == 2 and {item.numerator for item in outcome.items} <= {0.0, 1.0}


def test_wrong_requests_are_named(make, make_model, kept):
    make().prepare(Path(make_model()), kept)
    with pytest.raises(ValueError, match="no object with id, prompt and reference"):
        make([{"id": 1}]).prepare(Path(make_model()), kept)
    with pytest.raises(ValueError, match="use one of tests, short_answer, option, theorem"):
        make(grading="vibes")
    for changes, message in [
        ({"turn_limits": [2, 1]}, "ascending"),
        ({"max_solutions": 0}, "at least 1"),
        ({"instructions": "Solve it."}, "must hold {task}"),
    ]:
        with pytest.raises(ValueError, match=message.replace("{", r"\{")):
            make(**changes)


def test_a_machine_that_cannot_isolate_is_refused(make, make_model, kept, monkeypatch):
    monkeypatch.setattr(Sandbox, "_try", lambda self, level: "unshare: not permitted")
    with pytest.raises(ValueError, match="isolation=full or not at all"):
        check_isolation(make().limits, "full")
    with pytest.raises(ValueError, match="unshare: not permitted"):
        make().prepare(Path(make_model()), replace(kept, isolation="full"))
