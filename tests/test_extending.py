"""What the README's map says of each kind of addition, done from outside this repository: no file of it is touched.

A stage, and experiments with a lineage, are added in tests/lineage/test_stranger.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

METHOD = '''"""Identity copies of the last block, on top."""

from dataclasses import asdict, dataclass

from pipeline.expansion.base import Recipe
from pipeline.expansion.layout import Slot
from pipeline.expansion.methods.block import plan_stack


@dataclass(frozen=True)
class TopCopies:
    """`count` copies of the last block, each with zero residual writers."""

    count: int

    def check(self, num_blocks):
        if self.count < 1:
            raise ValueError(f"count={self.count} must be at least 1")

    def plan(self, source, place):
        last = source.anatomy.num_blocks - 1
        stack = [*map(Slot, range(last + 1)), *[Slot(last, new=True, group=0)] * self.count]
        writers = source.stored_for(last, source.anatomy.writers(last))

        def recipe(slot, position, rest):
            return Recipe("zeros" if rest in writers else "copy", source.blocks.join(slot.source, rest))

        return plan_stack(source, stack, recipe, True, "top_copies", asdict(self))
'''
STRATEGY = '''"""Norm scales alone."""

from dataclasses import dataclass

from pipeline.training.methods.strategy import Full


@dataclass(frozen=True)
class Norms(Full):
    """Train vectors, and no matrix."""

    def footprint(self):
        return None

    def apply(self, model, new_parameters):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.dim() == 1)
        return model
'''
SOURCE = '''"""Sums, as text."""

from dataclasses import dataclass

from pipeline.data.sources.rows import Row


@dataclass(frozen=True)
class Sums:
    """One row for each pair of numbers below `limit`."""

    limit: int

    def rows(self, locate, listing):
        for a in range(self.limit):
            for b in range(self.limit):
                yield Row(f"{a}-{b}", {"text": f"{a} plus {b} is {a + b}, and {a} times {b} is {a * b}."})
'''
LAYOUT = '''"""Rows that hold a question and what it is answered with, under names of their own."""

from dataclasses import dataclass

from pipeline.data.chat.conversations import checked


@dataclass(frozen=True)
class Quiz:
    """A layout for `Chats`; a row without the columns raises KeyError, and is counted."""

    asks: str
    says: str

    def chat(self, row):
        turns = (("user", row.fields[self.asks]), ("assistant", row.fields[self.says]))
        return checked(row.id, [{"role": role, "content": text} for role, text in turns])
'''
BENCHMARK = '''"""How likely the model thinks given sentences are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.base import Item, Outcome, content_hash


@dataclass(frozen=True)
class Sentences:
    """Bits per byte of a few sentences."""

    sentences: Sequence[str]

    def run(self, model, tokenizer, inputs):
        import torch

        items = []
        for number, text in enumerate(self.sentences):
            ids = torch.tensor([tokenizer(text).input_ids])
            with torch.no_grad():
                nats = float(model(ids, labels=ids).loss) * (ids.numel() - 1)
            items.append(Item(str(number), content_hash(text), nats / math.log(2), len(text.encode()), prompt=text))
        return Outcome("bits_per_byte", False, tuple(items))
'''
FILES = {
    "additions/__init__.py": "",
    "additions/method.py": METHOD,
    "additions/strategy.py": STRATEGY,
    "additions/source.py": SOURCE,
    "additions/layout.py": LAYOUT,
    "additions/benchmark.py": BENCHMARK,
    "conf/expand/top_copies.yaml": "skip: false\nsave: full\n_target_: additions.method.TopCopies\ncount: 2\n",
    "conf/strategy/norms.yaml": "_target_: additions.strategy.Norms\n",
    "conf/data/source/sums.yaml": """
_target_: pipeline.data.sources.documents.Text
origin: {_target_: additions.source.Sums, limit: 12}
weight: 1.0
text_field: text
boundary: null
max_symbol_fraction: null
""",
    "conf/data/sums.yaml": """
defaults:
  - /data/source@sources.sums: sums
  - _self_
_target_: pipeline.data.text.TextData
replay: {}
bad_rows: refuse
decontaminate: null
held_out: {_target_: pipeline.data.clean.split.HeldOut, bytes: null, fraction: 0.1, threshold: 0.9, seed: 0}
""",
    "conf/data/quiz.yaml": """
_target_: pipeline.data.chats.ChatData
sources:
  quiz:
    _target_: pipeline.data.chat.conversations.Chats
    origin:
      _target_: pipeline.data.sources.documents.LocalFiles
      source: {kind: local, path: '???', include: ['**'], exclude: []}
    weight: 1.0
    limit: null
    layout: {_target_: additions.layout.Quiz, asks: q, says: a}
bad_rows: skip
decontaminate: null
held_out: {_target_: pipeline.data.clean.split.HeldOut, bytes: null, fraction: 0.2, threshold: 0.9, seed: 0}
template: null
date: "2024-07-26"
template_options: {}
""",
    "conf/benchmark/sentences.yaml": """
# @package benchmark.sentences
_target_: additions.benchmark.Sentences
title: Sentences
group: general
note: Two sentences.
sentences: [Words are read., So are numbers.]
""",
    "conf/experiment/additions.yaml": """
# @package _global_
defaults:
  - override /model: tiny
  - override /expand: top_copies
  - override /strategy@pretrain.strategy: norms
  - override /data@pretrain.data: sums
  - override /data@sft.data: quiz
  - override /benchmark: [domain, sentences]
name: additions
pretrain: {seq_len: 64, num_tokens: 512, validation_tokens: 128, lr: 0.01}
sft: {seq_len: 128, num_tokens: 512, validation_tokens: 128}
report: {num_bootstrap: 200}
launch: {cpu: true, threads: 1}
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Somebody's folder: a package with the five classes, and their yaml."""
    root = tmp_path_factory.mktemp("elsewhere")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.lstrip("\n"))
    rows = [{"q": f"What follows {n}?", "a": f"After {n} comes {n + 1}, and then {n + 2}."} for n in range(40)]
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"other": "row"}]))
    return root


@pytest.fixture(scope="module")
def drive(folder) -> Callable[..., int]:
    """Runs the driver in this process with that folder on its paths."""
    import pipeline.__main__ as driver

    def run(*arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            patch.setenv("PYTHONPATH", str(folder))
            path = f"hydra.searchpath=[file://{folder / 'conf'}]"
            patch.setattr("sys.argv", ["pipeline", path, f"paths.outputs={folder / 'outputs'}", *arguments])
            return driver.run()

    return run


@pytest.fixture(scope="module")
def made(drive, folder) -> Callable[[str], tuple[Path, dict]]:
    """The experiment that uses all of them, run once; gives a stage's artifact and its manifest."""
    quiz = f"sft.data.sources.quiz.origin.source.path={folder / 'quiz.jsonl'}"
    assert drive("experiment=additions", "launch=inprocess", quiz) == 0

    def find(label: str) -> tuple[Path, dict]:
        for path in (folder / "outputs/artifacts").glob("*/[!.]*/manifest.json"):
            if (manifest := json.loads(path.read_text()))["label"] == label:
                return path.parent, manifest
        raise AssertionError(f"nothing is labelled {label}")

    return find


def weights(directory: Path) -> dict:
    return load_file(directory / "model" / "model.safetensors")


QUIZ = {"sft": "embedded", "sft.seq_len": 128, "data@sft.data": "quiz", "sft.data.sources.quiz.origin.source.path": "."}
ALONE = [
    {"expand": "top_copies"},
    {"strategy@pretrain.strategy": "norms"},
    {"data@pretrain.data": "sums"},
    {"+data/source@pretrain.data.replay.sums": "sums", "pretrain.replay": 0.1},
    {"benchmark": "[domain,sentences]"},
    QUIZ,
]


@pytest.mark.parametrize("given", ALONE, ids=lambda given: next(iter(given)))
def test_each_alone_is_an_option_of_the_run_as_it_is(given, drive, folder, capfd):
    options = {
        "model": "tiny", "expand": "none", "strategy@pretrain.strategy": "full", "pretrain.seq_len": 64, "sft": "none",
        "data@pretrain.data": "local_text", "benchmark": "[domain]", "dry_run": "true", **given,
    }  # fmt: skip
    if options["data@pretrain.data"] == "local_text":
        options["pretrain.data.sources.local.origin.source.path"] = folder / "additions"
    assert drive(*(f"{key}={value}" for key, value in options.items())) == 0, capfd.readouterr().err


def test_what_an_addition_refuses_stops_the_run_before_it_starts(drive, capfd):
    assert drive("model=tiny", "expand=top_copies", "expand.count=0", "dry_run=true") == 1
    assert "count=0 must be at least 1" in capfd.readouterr().err


def test_an_expansion_method(made):
    directory, manifest = made("expand")
    assert manifest["expansion"]["method"] == "top_copies" and manifest["metrics"]["exact"]
    assert [block["position"] for block in manifest["expansion"]["blocks"]] == [4, 5]
    assert (
        manifest["metrics"]["num_blocks"] == 6 and not weights(directory)["model.layers.5.mlp.down_proj.weight"].any()
    )


def test_a_strategy(made):
    before, after = (weights(made(label)[0]) for label in ("expand", "pretrain"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved and all(before[name].dim() == 1 for name in moved)


def test_a_data_source(made):
    directory, _ = made("data/pretrain")
    counted = json.loads((directory / "sources.json").read_text())["sources"]["sums"]
    assert counted["documents"] + counted["held_out_documents"] <= 144 and counted["tokens"] > 1000


def test_a_chat_layout(made):
    directory, _ = made("data/sft")
    counted = json.loads((directory / "sources.json").read_text())["sources"]["quiz"]
    assert counted["documents"] + counted["held_out_documents"] == 40
    assert counted["rejected"] == {"columns missing": 1}


def test_a_benchmark_and_an_experiment(made, folder):
    data = json.loads((folder / "outputs/reports/additions/data.json").read_text())
    models = {model["row"]: model for model in data["models"]}
    assert list(models) == ["base", "expanded", "post-pretrained", "tuned"]
    assert models["expanded"]["differences"]["sentences"]["mark"] == "identical"
    assert models["tuned"]["scores"]["sentences"]["n"] == 2
