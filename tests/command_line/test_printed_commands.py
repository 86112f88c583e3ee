"""Commands that are printed for running something again are what was typed, and make the same run."""

from __future__ import annotations

import json
import shlex

import pytest

from pipeline.command_line.arguments import arrange
from pipeline.command_line.selection import identity
from pipeline.command_line.short_forms import as_typed, lengthened, literal_paths
from pipeline.command_line.sweep import prepare
from pipeline.engine.sweep.capacity import Need

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SWEPT = {
    "model": ["model=./a b", "model=tiny"],
    "model-hub": [f"model=org/name@{COMMIT}", "model=~/it's here"],
    "data": ["data=/tmp/x/ok.jsonl", "data=../bad json"],
    "data-hub": ["data=org/name", "data=none"],
    "chats": ["chats=./chats.jsonl", "chats=none"],
    "strategy": ["strategy=full", "strategy=lora"],
    "blocks": ["expand.num_blocks=2", "expand.num_blocks=4"],
    "budget": ["pretrain.num_steps=5", "pretrain.num_steps=10"],
    "null": ["expand=null", "expand=block"],
}


def read(*typed: str) -> list[str]:
    return lengthened(arrange(literal_paths(typed)))


@pytest.mark.parametrize("swept", SWEPT.values(), ids=SWEPT)
def test_a_sweeps_command_is_what_was_typed_and_makes_the_same_cells(swept, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    key, values = swept[0].partition("=")[0], [word.partition("=")[2] for word in swept]
    quoted = ",".join(json.dumps(value) if {" ", "'"} & set(value) else value for value in values)
    typed = ["-m", f"{key}={quoted}", "stage=base", "name=mine", f"paths.outputs={tmp_path / 'out'}"]
    found = prepare(read(*typed), lambda config: Need(1), typed)
    assert shlex.split(found.sweep.command) == ["python", "-m", "pipeline", *typed]
    again = prepare(read(*shlex.split(found.sweep.command)[3:]), lambda config: Need(1))
    assert [cell.key for cell in again.cells] == [cell.key for cell in found.cells]
    assert again.sweep.directory == found.sweep.directory
    for cell, word in zip(found.cells, swept, strict=True):
        words = shlex.split(cell.command)[3:]
        assert [one.replace('"', "") for one in words] == [word.replace("=null", "=none"), *typed[2:]]
        assert identity(read(*words))[0] == cell.variant and cell.name == words[0]


@pytest.mark.parametrize(
    "typed",
    [
        *([word] for words in SWEPT.values() for word in words),
        ["+benchmark=own", "benchmark.own.path=./q.jsonl"],
        ["pretrain.num_tokens=null"],
        ["sft.num_epochs=2", "sft.num_steps=null"],
        ['model="./a,b"'],
    ],
    ids=str,
)
def test_overrides_in_short_form_are_the_same_in_long_form(typed):
    once = read(*typed)
    assert sorted(read(*as_typed(once))) == sorted(once) and len(as_typed(once)) <= len(typed)
