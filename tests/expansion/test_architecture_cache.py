"""What is remembered of architectures: the same plan without torch, and no answer outlives what it was made of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.expansion import architecture_cache as anatomy
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from tests.children import PATIENCE_S

ROOT = Path(__file__).parents[2]
PLAN = """
import json, sys
from pathlib import Path
from pipeline.expansion.source import read_source
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.writer import write_expansion

source = read_source(Path(sys.argv[1]), Path(sys.argv[2]))
plan = BlockExpansion(num_groups=2, init=sys.argv[3]).plan(source)
write_expansion(plan, source, Path(sys.argv[4]), save=sys.argv[5])
print(json.dumps({"plan": repr(plan), "heavy": sorted({"torch", "transformers", "numpy"} & set(sys.modules))}))
"""


def planned(model, memory, init="zero_writers"):
    source = read_source(model, memory)
    plan = BlockExpansion(num_groups=2, init=init).plan(source)
    source.anatomy.save()
    return repr(plan)


@pytest.mark.parametrize(
    ("model_type", "init", "save"), [("llama", "zero_writers", "delta"), ("qwen3", "zero_norms", "full")]
)
def test_a_known_architecture_is_planned_and_written_without_torch(make_model, tmp_path, model_type, init, save):
    model, memory = make_model("bfloat16", model_type=model_type), tmp_path / "memory"
    expected = planned(model, None, init)
    assert planned(model, memory, init) == expected
    command = [sys.executable, "-c", PLAN, model, memory, init, tmp_path / "grown", save]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"plan": expected, "heavy": []}
    from pipeline.expansion.verify import verify_identity

    assert verify_identity(model, tmp_path / "grown").exact


def test_another_config_is_another_architecture(make_model, tmp_path):
    memory = tmp_path / "memory"
    planned(make_model(), memory)
    before = {file.name: file.read_text() for file in memory.iterdir()}
    planned(make_model(num_attention_heads=2, num_key_value_heads=2), memory)
    assert len(before) == 1 and len(list(memory.iterdir())) == 2
    assert all((memory / name).read_text() == text for name, text in before.items())


@pytest.mark.parametrize("what", ["version", "_own_code"])
def test_answers_of_other_versions_are_not_taken(make_model, tmp_path, monkeypatch, what):
    model, memory = make_model(), tmp_path / "memory"
    planned(model, memory)
    (old,) = memory.iterdir()
    old.write_text(json.dumps({**json.loads(old.read_text()), "prefix": "nonsense."}))
    monkeypatch.setattr(anatomy, what, lambda *_: "another")
    planned(model, memory)
    assert len(list(memory.iterdir())) == 2


def test_code_without_a_version_is_not_remembered(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(anatomy, "version", lambda name: "5.99.0.dev0")
    planned(make_model(), tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_memory_counts_as_empty(make_model, tmp_path, text):
    model, memory = make_model(), tmp_path / "memory"
    expected = planned(model, memory)
    (file,) = memory.iterdir()
    file.write_text(text)
    assert planned(model, memory) == expected
    assert json.loads(file.read_text())["prefix"] == "model.layers."


def test_a_memory_that_cannot_be_written_is_no_error(make_model, tmp_path):
    (tmp_path / "memory").write_text("a file")
    assert planned(make_model(), tmp_path / "memory") == planned(make_model(), None)


def test_a_stack_that_does_not_fit_is_refused_every_time(make_model, tmp_path):
    source = read_source(make_model(), tmp_path / "memory")
    shorter = {**source.config, "num_hidden_layers": 3}
    stack = BlockExpansion(num_groups=2).slots(source.anatomy.num_blocks)
    for _ in range(2):
        with pytest.raises(ValueError, match="the expanded config makes 3 blocks, the plan has 6"):
            source.anatomy.check_grown(shorter, stack)
