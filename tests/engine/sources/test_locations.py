"""Local data is identified by what its files hold."""

import json
import os
import time

import pytest

from pipeline.engine.errors import ConfigError
from pipeline.engine.sources import hashes as hashing
from pipeline.engine.sources.hashes import HashCache
from pipeline.engine.sources.locations import listing, localize


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    for name in ("a.py", "b.txt", "sub/c.py", "sub/deep/d.py", ".git/x.py", "__pycache__/a.pyc", "sub/.hidden"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")
    return root


def content(root, cache, **extra):
    params, locations = localize({"source": {"kind": "local", "path": str(root), **extra}}, cache)
    (key,) = locations
    assert params == {"source": {"kind": "local", "content": key}}
    return key


def test_listing_is_sorted_and_leaves_out_what_is_hidden(corpus):
    assert listing(corpus) == ["a.py", "b.txt", "sub/c.py", "sub/deep/d.py"]
    assert listing(corpus, ["**/*.py"], ["sub/deep/**"]) == ["a.py", "sub/c.py"]
    assert listing(corpus, ["*.py"]) == ["a.py"]
    assert listing(corpus / "b.txt", ["*.py"]) == ["b.txt"]


def test_folders_excluded_as_a_whole_are_not_entered(corpus, monkeypatch):
    entered, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: entered.append(os.path.basename(folder)) or scan(folder))
    assert listing(corpus, None, ["sub/d*/**"]) == ["a.py", "b.txt", "sub/c.py"]
    assert listing(corpus, None, ["**/deep/**"]) == ["a.py", "b.txt", "sub/c.py"]
    assert "deep" not in entered and "sub" in entered
    assert listing(corpus, None, ["sub/**/*.py"]) == ["a.py", "b.txt"]


def test_listing_follows_links_and_survives_a_loop(corpus, tmp_path):
    (tmp_path / "blob").write_text("linked")
    (corpus / "link.txt").symlink_to(tmp_path / "blob")
    (corpus / "sub" / "loop").symlink_to(corpus)
    assert "link.txt" in listing(corpus)
    assert len(listing(corpus)) == 5
    (corpus / "alias").symlink_to(corpus / "sub")
    assert listing(corpus, ["alias/*", "sub/*"]) == ["alias/c.py", "sub/c.py"]


def test_identity_is_the_content_and_not_the_place(corpus, tmp_path):
    before = content(corpus, tmp_path / "cache")
    moved = corpus.rename(tmp_path / "elsewhere")
    (moved / ".git" / "x.py").write_text("hidden files do not count")
    assert content(moved, tmp_path / "cache") == before
    assert content(moved, tmp_path / "cache", include=["**/*.py"]) != before
    (moved / "b.txt").rename(moved / "c.txt")
    assert content(moved, tmp_path / "cache") != before


def test_globs_that_mean_the_same_files_are_the_same_data(corpus, tmp_path):
    one = content(corpus, tmp_path, include=["*.py"])
    assert content(corpus, tmp_path, include=["**"], exclude=["b.txt", "sub/**"]) == one


def test_location_is_recorded_and_other_keys_stay(corpus, tmp_path):
    source = {"kind": "local", "path": str(corpus), "exclude": ["sub/**"], "format": "text"}
    params, locations = localize({"mix": [{"name": "x", "source": source}], "lr": 1.0}, tmp_path)
    made = params["mix"][0]["source"]
    assert set(made) == {"kind", "format", "content"} and params["lr"] == 1.0
    assert locations == {made["content"]: {"path": str(corpus), "include": None, "exclude": ["sub/**"]}}
    assert source["path"] == str(corpus)
    assert localize(params, tmp_path) == (params, {})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "/nowhere/x"}, r"^data\[0\]\.source\.path: /nowhere/x does not exist"),
        ({"include": ["*.md"]}, r"^data\[0\]\.source\.path: no file below .* matches include=\['\*\.md'\]"),
        ({"include": "*.py"}, r"^data\[0\]\.source\.include='\*\.py' is one string"),
    ],
)
def test_wrong_requests(corpus, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        localize({"data": [{"source": {"kind": "local", "path": str(corpus), **change}}]}, tmp_path)


def test_empty_folder_and_missing_path(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no files"):
        content(tmp_path / "empty", tmp_path)
    with pytest.raises(ConfigError, match="a local source needs a path"):
        localize({"kind": "local"}, tmp_path)


def test_unchanged_files_are_read_once(corpus, tmp_path, monkeypatch):
    for path in corpus.rglob("*"):
        os.utime(path, (time.time() - 100, time.time() - 100))
    before, read = content(corpus, tmp_path), []
    original = hashing.sha256_file
    monkeypatch.setattr(hashing, "sha256_file", lambda path: read.append(path.name) or original(path))
    assert content(corpus, tmp_path) == before and read == []
    (corpus / "b.txt").write_text("changed content.txt")
    assert content(corpus, tmp_path) != before and read == ["b.txt"]
    content(corpus, tmp_path)
    assert read == ["b.txt", "b.txt"], "a file written a moment ago must not be remembered"


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"%s": "x"}'])
def test_corrupt_cache_only_costs_time(corpus, tmp_path, broken):
    before = content(corpus, tmp_path)
    (tmp_path / "hashes.json").write_text(broken.replace("%s", str(corpus / "a.py")))
    assert content(corpus, tmp_path) == before


def test_cache_keeps_what_another_process_added(tmp_path):
    old = time.time() - 100
    for name in "ab":
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (old, old))
    one, two = HashCache(tmp_path), HashCache(tmp_path)
    one.sha256(tmp_path / "a")
    two.sha256(tmp_path / "b")
    one.save()
    two.save()
    known = json.loads((tmp_path / "hashes.json").read_text())
    assert set(known) == {str(tmp_path / "a"), str(tmp_path / "b")}
