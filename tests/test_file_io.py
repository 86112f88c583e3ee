"""Files get the permissions that the umask leaves, whatever wrote them."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
import torch

from pipeline.engine import artifact
from pipeline.engine.sources.hashes import write_atomic
from pipeline.file_io import grant, umask


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def mask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(directory: Path) -> set[int]:
    return {mode(file) for file in directory.rglob("*") if file.is_file()}


def test_the_umask_is_read_and_stays(mask):
    assert umask() == mask == umask()


def test_text_that_appears_at_once(mask, tmp_path):
    write_atomic(tmp_path / "text", "text")
    assert mode(tmp_path / "text") == 0o666 & ~mask


def test_a_committed_artifact_whoever_wrote_its_files(mask, tmp_path):
    from safetensors.torch import save_file

    partial = tmp_path / "stage-0123.partial"
    (partial / "model").mkdir(parents=True)
    save_file({"a": torch.zeros(2)}, partial / "model" / "model.safetensors")
    descriptor, name = tempfile.mkstemp(dir=partial, prefix="made-")
    os.close(descriptor)
    (partial / "script").touch()
    (partial / "script").chmod(0o755)
    committed = artifact.commit(partial, {})
    assert mode(committed / "model" / "model.safetensors") == mode(committed / Path(name).name) == 0o666 & ~mask
    assert mode(committed / artifact.MANIFEST) == 0o666 & ~mask
    assert mode(committed / "script") == 0o755  # nothing is taken away


def test_models_that_the_library_saves(mask, tmp_path):
    from pipeline.models.architecture.tiny import save_random
    from tests.conftest import TINY_LLAMA

    save_random(tmp_path / "model", TINY_LLAMA, "float32", 0)
    assert modes(tmp_path / "model") == {0o666 & ~mask}


def test_a_model_that_is_written_again_and_one_in_old_files(mask, tmp_path):
    from pipeline.models.architecture.tiny import save_random
    from pipeline.models.bin import convert_bin
    from pipeline.models.directory import materialise
    from tests.conftest import TINY_LLAMA

    save_random(tmp_path / "model", TINY_LLAMA, "float32", 0)
    for file in (tmp_path / "model").iterdir():
        file.chmod(0o600)
    materialise(tmp_path / "model", tmp_path / "copy")
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "model" / "model.safetensors"), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    convert_bin(tmp_path / "model", tmp_path / "new")
    assert modes(tmp_path / "copy") == modes(tmp_path / "new") == {0o666 & ~mask}


def test_links_are_left_alone(tmp_path):
    (tmp_path / "inside").mkdir()
    outside = tmp_path / "outside"
    outside.touch(0o600)
    outside.chmod(0o600)
    (tmp_path / "inside" / "link").symlink_to(outside)
    grant(tmp_path / "inside")
    assert mode(outside) == 0o600
