"""What is typed: flags anywhere, any path once it is quoted as the message says, nothing answered by a traceback."""

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import pipeline.__main__ as driver
from pipeline.command_line.arguments import arrange, quoted
from pipeline.engine.errors import ConfigError

ROOT = Path(__file__).parents[2]
PATHS = (
    "/a=b",
    "/a (b)",
    "/a,b",
    "/é",
    "/[a]",
    "/{a}",
    "/a#b",
    "~/a",
    "/a'b\"c(",
    "/a!",
    "/日本",
    " /a ",
    "/a$b(",
)


@pytest.mark.parametrize(
    "typed",
    ["-m a=1,2 b=1", "a=1,2 -m b=1", "a=1,2 b=1 -m", "b=1 --multirun a=1,2"],
)
def test_a_sweep_may_be_asked_for_anywhere(typed):
    flag = "--multirun" if "--multirun" in typed else "-m"
    found = arrange(typed.split())
    assert found[0] == flag and sorted(found[1:]) == ["a=1,2", "b=1"]


def test_flags_keep_their_values():
    assert arrange(["a=1", "--cfg", "job", "b=2", "--info", "defaults", "-p", "x.y"]) == [
        "--cfg", "job", "--info", "defaults", "-p", "x.y", "a=1", "b=2",
    ]  # fmt: skip
    assert arrange(["a=1", "--info", "b=2", "--cfg=job"]) == ["--info", "--cfg=job", "a=1", "b=2"]


@pytest.mark.parametrize("path", PATHS)
def test_the_quoted_form_in_the_message_gives_the_path(path):
    with pytest.raises(ConfigError, match=r"model\.source\.path") as caught:
        arrange([f"model.source.path={path}"])
    typed = shlex.split(str(caught.value).splitlines()[-1])[-1]
    assert OverridesParser.create().parse_override(arrange([typed])[0]).value() == path


@pytest.mark.parametrize("path", ["/a b", "/a:b", "/a$b", "C:\\a", "/a-b_c%d+e@f", "../a"])
def test_a_path_that_needs_no_quotes_is_taken_as_it_is(path):
    (override,) = arrange([f"model.source.path={path}"])
    assert OverridesParser.create().parse_override(override).value() == path


def test_any_text_can_be_quoted():
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choice("ab/\\\"' =(),[]{}é#~:$!\t") for _ in range(draw.randint(1, 9)))
        override = quoted("key", text)
        assert override is not None and OverridesParser.create().parse_override(override).value() == text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--cgf", r"--cgf is not a flag; did you mean --cfg\?"),
        ("--dry-run", r"if it is a setting, write dry_run=VALUE"),
        ("--pretrain.lr=1", r"settings are given without dashes: pretrain.lr=1"),
        ("dry_run", r"'dry_run' is not a setting; write key=value, without spaces around the '='"),
        ("=", r"write key=value"),
        ("dry_run = true", r"has spaces around its '=' or at its end; write dry_run=true$"),
        ("expand.num_groups=1,2", r"python -m pipeline -m expand.num_groups=1,2"),
        ("a=\udcff", r"b'a=\\xff' is not valid UTF-8"),
    ],
)
def test_what_cannot_be_read_says_what_to_type(word, message):
    with pytest.raises(ConfigError, match=message):
        arrange(["stage=base", word])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["~expand"], "the config has no expand, because ~expand removes it; expand=none leaves the stage out"),
        (["~pretrain.data"], "pretrain needs data; pretrain=none leaves"),
        (["~pretrain.lr", "stage=pretrain"], "pretrain: lr must be given"),
        (["dry_run="], "dry_run='' must be true or false"),
        (["verify_resume=yes"], "verify_resume='yes' must be true or false"),
        (["name=7"], "name=7 must be text; what reads as a number needs quotes: 'name=\"7\"'"),
        (["name="], "name='' must be text that is not empty; leave name out for the default, or write name=TEXT"),
        (["stage=[pretrain]"], "stage=['pretrain'] must be text, one at a time: stage=pretrain, or -m stage=pretrain"),
        (["stage=pretrian"], "there is no stage 'pretrian'; did you mean pretrain? (there are: base, data, evaluate,"),
        (["stage=evaluation"], "there is no stage 'evaluation'; did you mean evaluate?"),
        (["stage=pretrain", "to=tuned"], "stage=pretrain and to=tuned are two goals: tuned is made by stage sft"),
        (
            ["launch.loggers=[tensorbord]"],
            "base: launch.loggers has 'tensorbord', no tracker; did you mean tensorboard?",
        ),
        (
            ["model=tiny", "pretrain.batch_size=1000"],
            "pretrain: num_tokens=8192 is less than one step of batch_size=1000",
        ),
        (["model=tiny", "pretrain.weight_decay=-3"], "pretrain: weight_decay=-3 must be at least 0"),
        (
            ["model=tiny", "benchmark=[arc_easy]", "benchmark.arc_easy.limit=-5"],
            "evaluate/base/arc_easy: benchmark.arc_easy.limit=-5 must be at least 1",
        ),
        (
            ["evaluate.gate={max_dorp: 1}"],
            "evaluate.gate.max_dorp is not a key of the config; did you mean evaluate.gate.",
        ),
        (["name=../x"], "name='../x' names folders below paths.outputs"),
        (["paths.outputs=7"], "paths.outputs=7 must be text"),
        (["model=local", "model.source.path=7"], "model.source.path=7 must be the path of a file or directory"),
        (["model=local", "model.source.path=null"], "model.source.path=None must be the path"),
    ],
)
def test_what_cannot_be_run_is_refused_without_a_traceback(monkeypatch, capsys, tmp_path, overrides, message):
    outputs = [] if "paths.outputs=7" in overrides else [f"paths.outputs={tmp_path}"]
    dry = [] if "dry_run=" in overrides else ["dry_run=true"]
    monkeypatch.setattr(sys, "argv", ["pipeline", *dry, *outputs, *overrides])
    assert driver.run() == 1
    assert capsys.readouterr().err.startswith(f"ConfigError: {message}")


def test_a_directory_that_is_gone_is_said(monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["pipeline", "dry_run=true"])
    assert driver.run() == 1
    assert "the current directory was removed" in capsys.readouterr().err


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_locale_of_another_encoding_changes_nothing(make_model, tmp_path, locale):
    odd = tmp_path / "ein Modell (groß),=1"
    odd.symlink_to(make_model())
    command = [sys.executable, "-m", "pipeline", "dry_run=true", "stage=base", "model=local"]
    command += [quoted("model.source.path", str(odd)), quoted("paths.outputs", str(tmp_path / "aus,gäbe"))]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run(command, cwd=ROOT, env={**kept, **locale}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"1 to build, 0 to reuse" in done.stdout
