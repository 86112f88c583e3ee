"""The README's commands are commands: each is planned with what it says, on a real path where it names one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import pipeline.__main__ as driver
from pipeline import export, pack
from pipeline.evaluation.trace.benchmark import TASKS
from tests.expansion.architectures import EXACT, REFUSED

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"`(python -m pipeline(?: [^`]*)?)`", README)))


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_can_be_planned(command, make_model, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("words to learn")
    (text / "chat.jinja").write_text("{{ messages }}")
    (text / "questions.jsonl").write_text('{"question": "Which?", "options": ["this", "that"], "answer": "that"}')
    for task in TASKS:
        (text / task).mkdir()
        for split in ("train", "test"):
            (text / task / f"{split}.json").write_text('[{"prompt": "Which?", "answer": "A"}]')
    odd = tmp_path / "a, model (1)"
    odd.symlink_to(make_model())
    arguments = [a.replace("/path/to/a, model (1)", str(odd)) for a in shlex.split(command)[3:]]
    arguments = [a.replace("=/path/to/model", f"={make_model()}").replace("=/path", f"={text}") for a in arguments]
    if any(a.startswith("model=") and "/" in a for a in arguments):
        arguments += ["pretrain.seq_len=64", "sft.seq_len=64", "benchmark=[domain]"]
    if "--cfg" not in arguments and "--help" not in arguments and "dry_run=true" not in arguments:
        arguments.append("dry_run=true")
    if "--help" not in arguments:
        arguments += [f"paths.outputs={tmp_path / 'outputs'}", f"paths.cache={tmp_path.parent / 'hashes'}"]
    monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
    assert driver.run() == 0, capsys.readouterr().err


def test_pack_commands_are_understood():
    commands = re.findall(r"^python -m pipeline\.pack (.*)$", README, re.M)
    assert {shlex.split(command)[0] for command in commands} == {"extract", "attach", "detach", "materialise"}
    for command in commands:
        pack.parser().parse_args(shlex.split(command))


def test_export_commands_are_understood():
    commands = re.findall(r"^python -m pipeline\.export (.*?)(?: +#.*)?$", README, re.M)
    assert commands
    for command in commands:
        export.parser().parse_args(shlex.split(command))


def test_the_table_of_architectures_is_that_of_the_tests():
    section = README.partition("### Architectures")[2].partition("###")[0]
    cells = [cell.strip() for row in re.findall(r"^\| (?!exact|---)(.*)\|$", section, re.M) for cell in row.split("|")]
    assert [cell for cell in cells if cell] == list(EXACT)
    assert all(name.split(",")[0] in section for name in REFUSED)


@pytest.mark.parametrize(
    ("makes", "nodes"),
    [("tuned", ["expand/grown", "pretrain/law", "evaluate/tuned/domain"]), ("mixed", ["pretrain/law", "expand/mixed"])],
)
def test_the_lineage_of_an_example_is_planned(tmp_path, monkeypatch, capsys, makes, nodes):
    examples = re.findall(r"^```yaml\n(.*?)^```", README, re.M | re.S)
    assert len(examples) == 3  # the third needs data of its own
    (example,) = (one for one in examples if f"\n  {makes}:" in one)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "example.yaml").write_text(example)
    (tmp_path / "a.txt").write_text("words to learn")
    path = f"origin.source.path={tmp_path / 'a.txt'}"
    arguments = [
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=example", "model=tiny", "expand.num_groups=2",
        "data@pretrain.data=local_text", f"pretrain.data.sources.local.{path}",
        *([f"law.sources.local.{path}"] if "/data@law" in example else []),
        "pretrain.seq_len=64", "sft.seq_len=64", "benchmark=[domain]", f"paths.outputs={tmp_path}", "dry_run=true",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
    assert driver.run() == 0, capsys.readouterr().err
    plan = capsys.readouterr().out
    assert all(made in plan for made in nodes)


def test_named_files_exist():
    root = Path(__file__).parent.parent
    named = set(re.findall(r"`((?:pipeline|stages|tests|conf|docs)/[\w/]+\.\w+)`", README))
    assert len(named) > 8 and [name for name in sorted(named) if not (root / name).is_file()] == []
    for name in ("pipeline/", "stages/", "conf/", "tests/"):
        assert f"\n{name} " in README and (root / name).is_dir()
    for target in set(re.findall(r"\bmake (\w[\w-]*)", README)):
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(), re.M), target
