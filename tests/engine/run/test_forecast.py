"""What stages say of nodes before they run: from foreseen facts, or from what is committed."""

import io

from pipeline.engine.graph import Node
from pipeline.engine.run import runner
from pipeline.engine.run.display import Display


def costly(plus, label, **inputs):
    return Node("costly", label, 1, {"plus": plus}, inputs, {"launch": {"inprocess": True}})


def plan(tmp_path, *targets):
    return runner.plan(targets, tmp_path, tmp_path / "cache", stages="fake_stages")


def test_facts_pass_from_stage_to_stage_before_anything_is_built(tmp_path):
    first = costly(1, "costly/first")
    text = plan(tmp_path, costly(10, "costly/second", model=first))
    table, _, told = text.partition("2 to build, 0 to reuse\n")
    assert "costly/first" in table
    assert told == (
        "\ncostly/first:\n  total 1 with launch {'inprocess': True}\n  seen []\n"
        "\ncostly/second:\n  total 11 with launch {'inprocess': True}\n  seen []"
    )
    assert not (tmp_path / "artifacts").exists()


def test_what_is_committed_is_read_and_said_nothing_of(tmp_path):
    first = costly(1, "costly/first")
    directory = runner.run([first], tmp_path, tmp_path / "cache", stages="fake_stages")[first.fingerprint]
    (directory / "model" / "total.txt").write_text("7")
    text = plan(tmp_path, costly(10, "costly/second", model=first))
    assert text.endswith("costly/second:\n  total 17 with launch {'inprocess': True}\n  seen [1]")
    assert "costly/first:" not in text


def test_a_run_says_it_too_before_it_builds(tmp_path):
    shown = io.StringIO()
    node = costly(3, "costly/one")
    runner.run([node], tmp_path, tmp_path / "cache", stages="fake_stages", display=Display(shown))
    assert shown.getvalue().startswith("costly/one:\n  total 3 with launch {'inprocess': True}\n  seen []\nbuilding")


def test_stages_that_foresee_nothing_are_left_alone(tmp_path, number):
    text = plan(tmp_path, number(1))
    assert text.endswith("1 to build, 0 to reuse")
