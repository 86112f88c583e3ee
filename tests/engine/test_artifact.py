"""A committed directory is whole, or it is refused by name before any work starts."""

import json
import os
import re
import time

import pytest

from pipeline.engine import artifact
from pipeline.engine.artifact import model_dir
from pipeline.engine.errors import ArtifactError, ConfigError, PipelineError, StageError
from pipeline.engine.run import output_dir, runner
from pipeline.engine.sources.hashes import HashCache


@pytest.fixture
def built(tmp_path, number):
    """A committed artifact, old enough for its hashes to be remembered."""
    node = number(3)
    directory = runner.run([node], tmp_path, tmp_path / "cache", stages="fake_stages")[node.fingerprint]
    for path in directory.iterdir():
        os.utime(path, (time.time() - 100, time.time() - 100))
    return directory


def edit(directory, **changes):
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_manifest_says_what_it_is(built, number):
    manifest = artifact.verify(built, HashCache(built.parent))
    node = number(3)
    assert built.parts[-3:] == ("artifacts", "number", f"one-{node.fingerprint[:12]}")
    assert (manifest["stage"], manifest["label"], manifest["version"]) == ("number", "number/one", 1)
    assert manifest["fingerprint"] == node.fingerprint
    assert manifest["params"] == {"value": 3} and manifest["metrics"] == {"value": 3} and manifest["inputs"] == {}
    assert set(manifest["files"]) == {"config.yaml", "value.txt"}
    assert manifest["files"]["value.txt"]["size"] == 1
    provenance = manifest["provenance"]
    assert provenance["wall_time_s"] >= 0 and provenance["packages"]["accelerate"] and provenance["argv"]
    assert {"git", "host", "python", "started", "finished"} <= set(provenance)
    assert not list(built.glob(".*"))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "manifest.json").unlink(), "has no manifest.json"),
        (lambda d: (d / "manifest.json").write_text('{"stage": "num'), "cannot be read"),
        (lambda d: (d / "manifest.json").write_text("[]"), "lacks stage"),
        (lambda d: edit(d, params={"value": 4}), "was changed"),
        (lambda d: edit(d, inputs={"x": 1}), "was changed"),
        (lambda d: (d / "value.txt").unlink(), "value.txt is missing"),
        (lambda d: (d / "value.txt").write_text("33"), "has 2 bytes, its manifest says 1"),
    ],
)
def test_damage_stops_a_run_before_any_work(tmp_path, built, number, add, monkeypatch, damage, message):
    damage(built)
    runs = tmp_path / "runs"
    monkeypatch.setenv("FAKE_RUNS", str(runs))
    other = number(7, label="number/other")
    with pytest.raises(ArtifactError, match=message) as caught:
        runner.run([other, add(1, one=number(3))], tmp_path, tmp_path / "cache", stages="fake_stages")
    assert str(built) in str(caught.value) and "to rebuild it" in str(caught.value)
    assert not runs.exists()


def test_deleting_what_is_damaged_rebuilds_it(tmp_path, built, number):
    (built / "manifest.json").write_text("{")
    (built / "manifest.json").unlink()
    (built / "value.txt").unlink()
    (built / "config.yaml").unlink()
    built.rmdir()
    runner.run([number(3)], tmp_path, tmp_path / "cache", stages="fake_stages")
    assert (built / "value.txt").read_text() == "3"


def test_same_size_corruption_is_found_in_what_is_about_to_be_read(tmp_path, built, number, add):
    (built / "value.txt").write_text("9")
    assert artifact.check(built)
    with pytest.raises(ArtifactError, match=re.escape(f"{built / 'value.txt'} is damaged")):
        runner.run([add(1, one=number(3))], tmp_path, tmp_path / "cache", stages="fake_stages")
    assert not (tmp_path / "artifacts" / "add").exists()


def test_verified_files_are_hashed_once(built, tmp_path, monkeypatch):
    from pipeline.engine.sources import hashes

    first = HashCache(tmp_path / "c")
    artifact.verify(built, first)
    first.save()
    monkeypatch.setattr(hashes, "sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    artifact.verify(built, HashCache(tmp_path / "c"))


def test_a_renamed_artifact_is_refused(built):
    moved = built.rename(built.with_name("one-000000000000"))
    with pytest.raises(ArtifactError, match="give it that name back"):
        artifact.load_manifest(moved)


def test_the_whole_outputs_folder_may_move(tmp_path, built, number, add):
    runner.run([add(1, one=number(3))], tmp_path, tmp_path / "cache", stages="fake_stages")
    moved = (tmp_path / "artifacts").rename(tmp_path / "x")
    (tmp_path / "new").mkdir()
    moved.rename(tmp_path / "new" / "artifacts")
    for manifest in (tmp_path / "new").rglob("manifest.json"):
        artifact.verify(manifest.parent, HashCache(tmp_path))


def test_model_is_found_inside_or_by_reference(built, tmp_path):
    with pytest.raises(ArtifactError, match="neither model/ nor a model_path"):
        model_dir(built)
    (tmp_path / "elsewhere").mkdir()
    edit(built, model_path=str(tmp_path / "elsewhere"))
    assert model_dir(built) == tmp_path / "elsewhere"
    (built / "model").mkdir()
    assert model_dir(built) == built / "model"


def test_a_lost_reference_is_found_before_any_work(built, tmp_path, number):
    edit(built, model_path=str(tmp_path / "lost"))
    with pytest.raises(ArtifactError, match=r"refers to the model at .*lost, which is not there"):
        runner.run([number(3)], tmp_path, tmp_path / "cache", stages="fake_stages")


def test_publish_copies_what_people_read(built, tmp_path):
    target = artifact.publish(built, tmp_path / "reports" / "demo")
    artifact.publish(built, target)
    assert [path.name for path in target.iterdir()] == ["value.txt"]


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_a_full_disk_commits_nothing(tmp_path, number, monkeypatch, broken):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    original = getattr(os, broken)
    node = number(5)
    final = artifact.directory_of(node, tmp_path)

    def sometimes(*arguments):
        committing = (artifact.partial(final) / "value.txt").exists()
        return full() if committing else original(*arguments)

    monkeypatch.setattr(os, broken, sometimes)
    with pytest.raises(StageError, match=r"the disk of .* is full .*; free some space"):
        runner.run([node], tmp_path, tmp_path / "cache", stages="fake_stages")
    assert not final.exists() and artifact.find(node, tmp_path) is None
    monkeypatch.undo()


def test_a_disk_that_is_full_before_the_start(tmp_path, number, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(output_dir.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="has 1 MiB free, at least 256 MiB are required"):
        runner.run([number(5)], tmp_path, tmp_path / "cache", stages="fake_stages")


def test_a_disk_that_fills_while_a_directory_is_laid_out(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_dir, "write_atomic", full)
    with pytest.raises(PipelineError, match="is full"):
        output_dir.lay_out(tmp_path / "x.partial", {}, resumable=False)


def test_outputs_that_cannot_be_written(tmp_path, number):
    (tmp_path / "artifacts").write_text("a file where a folder is needed")
    with pytest.raises(ConfigError, match=r"artifacts cannot be written: .*; set paths.outputs"):
        runner.run([number(5)], tmp_path, tmp_path / "cache", stages="fake_stages")
