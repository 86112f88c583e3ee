"""`python -m pipeline.pack`: every command on a model and on an artifact, and what it says where it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import pack
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import read_bytes
from pipeline.models.save import save_trained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def places(make_model, tmp_path_factory):
    """A base, and an artifact of a model that was expanded from it and trained."""
    base, folder = make_model(), tmp_path_factory.mktemp("artifacts")
    source = read_source(base)
    plan = write_expansion(BlockExpansion(num_groups=2).plan(source), source, folder / "grown")
    stored = read_index(folder / "grown")
    new = {name: torch.randn(stored[name].shape) * 0.2 for name in plan.new_parameters}
    artifact = folder / "pretrain"
    save_trained(folder / "grown", artifact / "model", new)
    (artifact / "manifest.json").write_text("{}")
    return base, artifact


def content(directory: Path) -> dict[str, bytes]:
    return {name: read_bytes(stored) for name, stored in read_index(directory).items()}


def test_the_whole_way(places, tmp_path, capsys):
    base, artifact = places
    law, half, plain, again = (tmp_path / name for name in ("law.pack", "half", "plain", "again"))
    assert pack.main(["extract", str(artifact), str(law), "--base", str(base)]) == 0
    assert f"{law}: pack law, 2 blocks, " in capsys.readouterr().out
    assert pack.main(["attach", str(base), str(law), "--to", str(half), "--gain", "law=0.5"]) == 0
    assert "6 blocks, 4 of the base and 2 of packs\n  law: gain 0.5, now blocks 2, 5\n" in capsys.readouterr().out
    attached = ["attach", str(base), str(law), "--to", str(tmp_path / "first"), "--gain", "law.0=0.25"]
    assert pack.main(attached) == 0
    assert "  law: gain 1, of its block 0 0.25, now blocks 2, 5\n" in capsys.readouterr().out
    assert pack.main(["materialise", str(half), str(plain)]) == 0
    assert content(plain) == content(half) and load(plain).config.num_hidden_layers == 6
    assert pack.main(["detach", str(plain), "law", "--to", str(again)]) == 0
    assert content(again) == content(base)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "first", "half", "law.pack", "plain"]


def test_show(places, tmp_path, capsys):
    base, artifact = places
    pack.main(["extract", str(artifact), str(tmp_path / "p"), "--base", str(base), "--name", "law"])
    pack.main(["attach", str(base), str(tmp_path / "p"), "--to", str(tmp_path / "whole"), "--full"])
    capsys.readouterr()
    assert pack.main(["show", str(tmp_path / "p")]) == 0
    text = capsys.readouterr().out
    for part in ("pack law (", "llama of 4 blocks, content hash", "any number", "block 1 stands above block 3"):
        assert part in text
    assert pack.main(["show", str(tmp_path / "p"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "law"
    assert pack.main(["show", str(tmp_path / "whole")]) == 0
    assert "law: gain 1, now blocks 2, 5" in capsys.readouterr().out
    assert pack.main(["show", str(artifact)]) == 0
    assert capsys.readouterr().out.endswith("has no packs\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{here}/nowhere"], "nowhere does not exist"),
        (["show", "{here}"], "neither a model nor an artifact"),
        (["extract", "{base}", "{here}/p", "--base", "{base}"], "records no new blocks"),
        (["extract", "{artifact}", "{base}", "--base", "{base}", "--name", "p"], "exists and is not empty"),
        (["extract", "{artifact}", "{here}/p", "--base", "{base}", "--name", "a=b"], "cannot be called 'a=b'"),
        (["attach", "{base}", "{base}", "--to", "{here}/m"], "is not a pack: it has no pack.json and no blocks"),
        (["attach", "{base}", "p", "--to", "m", "--gain", "p=1", "--gain", "p=2"], "two gains"),
        (["detach", "{base}", "--to", "{here}/m"], "records no attached packs"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(places, tmp_path, capsys, arguments, message):
    names = {"here": tmp_path, "base": places[0], "artifact": places[1]}
    assert pack.main([argument.format(**names) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_another_base_than_the_one_expanded_is_explained(places, make_model, tmp_path, capsys, depth):
    other = make_model(num_hidden_layers=depth)
    capsys.readouterr()
    assert pack.main(["extract", str(places[1]), str(tmp_path / "p"), "--base", str(other)]) == 2
    error = capsys.readouterr().err
    assert f"was not expanded from {other}: the {depth} blocks of that and the 2 new ones" in error
    assert "give the base that it was expanded from" in error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gain", ["law", "=1", "law=", "law=much"])
def test_a_malformed_gain_is_a_wrong_argument(capsys, gain):
    with pytest.raises(SystemExit) as exit_:
        pack.main(["attach", "base", "pack", "--to", "target", "--gain", gain])
    assert exit_.value.code == 2 and "is not NAME=NUMBER, such as law=0.5" in capsys.readouterr().err


def test_an_interrupt_leaves_nothing_behind(places, tmp_path, monkeypatch, capsys):
    base, artifact = places

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.expansion.pack.extract.hash_file", stop)
    assert pack.main(["extract", str(artifact), str(tmp_path / "p"), "--base", str(base)]) == 130
    assert "stopped" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_help_comes_without_the_libraries():
    code = (
        "import sys; import pipeline.pack as pack\n"
        "try: pack.main(['--help'])\n"
        "finally: print(sorted({'torch', 'transformers', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.endswith("[]\n")
    for command in ("extract", "attach", "detach", "materialise", "show"):
        assert f"python -m pipeline.pack {command}" in result.stdout
