"""Whatever writes a model or a pack can be killed at any point: what is left is taken for nothing, or is all of it."""

import shutil
import signal

import pytest
import torch
import transformers

from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.pack.attach import attach, detach, extract
from pipeline.expansion.pack.format import open_pack
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.agreement import check_directory
from pipeline.models.bin import convert_bin
from pipeline.models.directory import materialise
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.files.tensor_file import tensors_hash
from pipeline.models.save import save_trained
from tests.expansion.kills import in_process, killed_at_call, num_calls

WAYS = {
    "extract": lambda at, to: extract(at / "trained", at / "base", to, "law"),
    "attach": lambda at, to: attach(at / "base", [at / "law.pack"], to),
    "attach, whole": lambda at, to: attach(at / "base", [at / "law.pack"], to, {"law": 0.5}, "full", 80_000),
    "detach": lambda at, to: detach(at / "attached", None, to, 80_000),
    "materialise": lambda at, to: materialise(at / "attached", to, 80_000),
    "convert_bin": lambda at, to: convert_bin(at / "old", to),
}
SAFE_AFTER = 3  # of the last calls only fsyncs of directories come after the one that completes it


@pytest.fixture(scope="module")
def places(make_model, tmp_path_factory):
    at = tmp_path_factory.mktemp("places")
    shutil.copytree(make_model(), at / "base")
    source = read_source(at / "base")
    plan = write_expansion(BlockExpansion(2, 1).plan(source), source, at / "grown")
    stored = read_index(at / "grown")
    new = {name: torch.randn(stored[name].shape) * 0.2 for name in plan.new_parameters}
    save_trained(at / "grown", at / "trained", new)
    extract(at / "trained", at / "base", at / "law.pack", "law")
    attach(at / "base", [at / "law.pack"], at / "attached")
    shutil.copytree(at / "base", at / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load(at / "base").state_dict(), at / "old/pytorch_model.bin")
    return at


def held(target):
    """The content of what is taken for a pack or a model, by us or by transformers; None: it is neither."""
    try:
        pack = open_pack(target)
    except (ValueError, OSError):
        pass
    else:
        return tensors_hash({f"{i}.{n}": t for i, block in enumerate(pack.tensors) for n, t in block.items()})
    try:
        transformers.AutoConfig.from_pretrained(target)
    except (OSError, ValueError):
        with pytest.raises(ValueError, match="no config"):
            check_directory(target)
        return None
    check_directory(target)
    return tensors_hash(read_index(target))


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_point_it_leaves_nothing_that_looks_complete(places, tmp_path, way):
    target = tmp_path / "new"

    def write():
        WAYS[way](places, target)

    write()
    expected = held(target)
    assert expected is not None
    shutil.rmtree(target)
    total = num_calls(write)
    steps = sorted({*range(0, total, max(1, total // 8)), *range(max(0, total - 6), total)})
    complete = []
    for step in steps:
        shutil.rmtree(target, ignore_errors=True)
        process = in_process(killed_at_call, step, write)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = held(target)
        assert found in (None, expected), step
        complete += [step] if found else []
    assert all(step >= total - SAFE_AFTER for step in complete), (complete, total)
    shutil.rmtree(target, ignore_errors=True)
    write()  # over whatever is left beside it
    assert held(target) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_files_beside_the_weights_are_on_the_disk_before_they_get_their_names(places, tmp_path, monkeypatch):
    from pipeline.models import directory
    from pipeline.models.files import atomic_io as durable

    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append(path.name))
    directory.copy_side_files(places / "base", tmp_path / "copy")
    assert sorted(synced) == sorted(f"{file.name}.partial" for file in (tmp_path / "copy").iterdir()) and synced
