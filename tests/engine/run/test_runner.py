"""What is built and what is reused, with stages that run inside this process."""

import io
from contextlib import closing

import pytest
from fake_driver import nodes_of

from pipeline.engine.errors import ConfigError, StageError
from pipeline.engine.graph import Node
from pipeline.engine.run import planning, runner
from pipeline.engine.run.display import Display, describe, duration, open_display


@pytest.fixture
def build(tmp_path):
    """A function that runs targets and returns what `runner.run` found and what it said."""

    def run(*targets, **options):
        shown = io.StringIO()
        found = runner.run(
            targets, tmp_path, tmp_path / "cache", stages="fake_stages", display=Display(shown), **options
        )
        return found, shown.getvalue()

    return run


def chain(number, add, first=1, second=2, plus=10, top=100):
    one, two = number(first, "number/first"), number(second, "number/second")
    middle = add(plus, "add/middle", a=one, b=two)
    return one, two, middle, add(top, "add/top", model=middle)


def labels(text):
    return [line.removeprefix("building ") for line in text.splitlines() if line.startswith("building ")]


def test_second_run_builds_nothing(build, number, add):
    top = chain(number, add)[-1]
    found, text = build(top)
    assert (found[top.fingerprint] / "value.txt").read_text() == "113"
    assert labels(text) == ["number/first", "number/second", "add/middle", "add/top"]
    again, text = build(top)
    assert again == {top.fingerprint: found[top.fingerprint]} | again and text == "reused 4 artifacts\n"


@pytest.mark.parametrize(
    "change, rebuilt",
    [
        ({"first": 5}, ["number/first", "add/middle", "add/top"]),
        ({"second": 5}, ["number/second", "add/middle", "add/top"]),
        ({"plus": 5}, ["add/middle", "add/top"]),
        ({"top": 5}, ["add/top"]),
    ],
)
def test_one_knob_rebuilds_its_node_and_what_descends_from_it(build, number, add, change, rebuilt):
    build(chain(number, add)[-1])
    _, text = build(chain(number, add, **change)[-1])
    assert labels(text) == rebuilt
    assert f"reused {4 - len(rebuilt)} artifact" in text


def test_an_artifact_is_found_under_another_label(build, number):
    build(number(1, "number/first"))
    assert labels(build(number(1, "number/renamed"))[1]) == []


def test_deleted_inputs_of_what_is_there_are_not_rebuilt(build, number, add, tmp_path):
    one, *_, top = chain(number, add)
    found, _ = build(top)
    for path in sorted(found[one.fingerprint].iterdir()):
        path.unlink()
    found[one.fingerprint].rmdir()
    assert labels(build(top)[1]) == []
    steps = {step.node.label: step.state for step in planning.plan([top], tmp_path)}
    assert steps == {"number/first": "unneeded", "number/second": "hit", "add/middle": "hit", "add/top": "hit"}


def test_what_is_there_is_reused_even_if_its_stage_would_refuse_it_today(build, number, add, tmp_path):
    """A report takes in cells of earlier versions, whose params lack what a stage asks for by now."""
    old, top = number(1, "number/old"), add(1, "add/top", a=number(1, "number/old"))
    build(old, top)
    strict = Node("number", "number/old", 1, {"value": 1}, {}, {"launch": {"inprocess": True}, "hints": {"least": 2}})
    assert labels(build(strict, top, add(5, "add/new", a=strict))[1]) == ["add/new"]
    wrong = Node("number", "number/old", 1, {"value": 1}, {}, {"launch": {"num_processes": 0}})
    with pytest.raises(ConfigError, match=r"^number/old: launch.num_processes=0 must be"):
        build(wrong)  # how it is launched is of this request
    assert "2 to reuse" in runner.plan([strict, top], tmp_path, tmp_path / "cache", stages="fake_stages")


def test_every_check_comes_before_any_work(build, number, add, tmp_path):
    bad = number(-1, "number/bad")
    with pytest.raises(ConfigError, match=r"^number/bad: value=-1 is too small; use at least 0$"):
        build(number(1), add(1, a=bad))
    with pytest.raises(ConfigError, match="use at least 2"):
        build(Node("number", "number/one", 1, {"value": 1}, {}, {"hints": {"least": 2}}))
    with pytest.raises(ConfigError, match="there is no stage 'nothing'"):
        build(Node("nothing", "nothing", 1, {}))
    with pytest.raises(ConfigError, match=r"^number/one: launch.num_processes=0 must be"):
        build(Node("number", "number/one", 1, {"value": 1}, {}, {"launch": {"num_processes": 0}}))
    assert not (tmp_path / "artifacts").exists()


def test_a_package_that_cannot_be_had_stops_the_run_before_any_work(build, number, monkeypatch, tmp_path):
    package = {"kind": "package", "name": "x", "version": "1", "filename": "x-1-py3-none-any.whl", "sha256": "0" * 64}
    monkeypatch.setattr(
        "pipeline.engine.sources.package._download", lambda source, path: pytest.fail("launched too early")
    )
    late = number(2, "number/late", source={**package, "sha256": "short"})
    with pytest.raises(ConfigError, match=r"^number/late: params\.source\.sha256='short' cannot be fetched"):
        build(number(1), late)
    assert not (tmp_path / "artifacts" / "number").exists()


def test_failure_inside_this_process_keeps_its_traceback(build):
    (node,) = nodes_of([{"stage": "fail", "params": {"how": "value"}, "launch": {"inprocess": True}}])
    with pytest.raises(StageError, match="stage fail failed: ValueError: found 3, required 4; change it") as caught:
        build(node)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.directory.name.endswith(".partial") and "-m fake_stages.fail" in caught.value.command


def test_a_result_without_a_stable_form_is_refused(build):
    (node,) = nodes_of([{"stage": "fail", "params": {"how": "nan"}, "launch": {"inprocess": True}}])
    with pytest.raises(StageError, match=r"metrics\.loss is nan"):
        build(node)


def test_plan_says_what_and_why(build, number, add, tmp_path):
    def plan(*nodes):
        return runner.plan(nodes, tmp_path, tmp_path / "cache", stages="fake_stages").splitlines()

    *_, top = chain(number, add)
    fresh = plan(top)
    assert [line.split()[:2] for line in fresh[:2]] == [["number/first", "miss"], ["number/second", "miss"]]
    assert fresh[0].endswith("no artifact") and fresh[2].endswith("input a is rebuilt; input b is rebuilt")
    assert fresh[-1] == "4 to build, 0 to reuse"
    assert not (tmp_path / "artifacts").exists()
    build(top)
    changed = chain(number, add, plus=11)[-1]
    lines = plan(changed)
    assert [line.split()[1] for line in lines[:4]] == ["hit", "hit", "miss", "miss"]
    assert lines[2].endswith("params.plus: 10 -> 11")
    assert lines[3].endswith("input model is rebuilt") and changed.fingerprint[:12] in lines[3]
    assert lines[-1] == "2 to build, 2 to reuse"
    with pytest.raises(ConfigError):
        plan(number(-1))


def test_nearest_sibling_is_the_one_with_the_fewest_differences(build, number, tmp_path):
    build(number(1, x=1, y={"a": [1], "b": 2}), number(2, x=5, y={"a": [1], "b": 3}))
    (step,) = planning.plan([number(2, x=5, y={"a": [2], "b": 3, "c": None})], tmp_path)
    assert step.reason == "params.y.a: [1] -> [2]; params.y.c: nothing -> None"


def test_display_is_quiet_where_there_is_no_terminal():
    shown = io.StringIO()
    with closing(open_display(shown)) as display:
        display.started("pretrain")
        for step in range(1000):
            display.progress("pretrain", {"step": step})
        display._shown["pretrain"] -= 20
        display.progress("pretrain", {"step": 7, "total": 9, "loss": 1.23456, "tokens_per_s": 5120, "eta_s": 151})
    assert shown.getvalue().splitlines() == [
        "building pretrain",
        "  pretrain: 7/9  loss 1.235  5,120 tokens/s  2m31s left",
    ]


def test_bars_in_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    with closing(open_display(shown)) as display:
        display.started("pretrain")
        display.progress("pretrain", {"step": 3, "total": 9, "note": "warming [up]"})
        display._progress.refresh()
        display.finished("pretrain", "pretrain/x-1", 151)
    assert "built pretrain/x-1  2m31s" in shown.getvalue() and "warming [up]" in shown.getvalue()


def test_short_texts():
    assert [duration(s) for s in (0.44, 9.96, 42.4, 59.7, 151, 3599.6, 11100)] == [
        "0.4s",
        "10.0s",
        "42s",
        "1m00s",
        "2m31s",
        "1h00m",
        "3h05m",
    ]
    assert describe({"step": 3, "note": "x"}) == "3  x"


@pytest.mark.parametrize("outputs", ["a_file/below", "/proc/nowhere"])
def test_a_plan_says_that_the_outputs_cannot_be_written_and_makes_nothing(tmp_path, number, outputs):
    (tmp_path / "a_file").touch()
    node = number(1, "number/first")
    with pytest.raises(ConfigError, match=f"{outputs}/artifacts cannot be written: .* set paths.outputs to a folder"):
        runner.plan([node], tmp_path / outputs, tmp_path / "cache", stages="fake_stages")
    runner.plan([node], tmp_path / "new", tmp_path / "cache", stages="fake_stages")
    assert not (tmp_path / "new").exists()
