"""Datasets of the hub: what is read, and what is said where nothing can be reached."""

from __future__ import annotations

import json

import fsspec
import pytest

from pipeline.data.sources.hub import HubError, Repository, is_commit
from pipeline.data.sources.rows import Rejected

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("streaming", [True, False])
def test_without_a_hub_the_error_says_what_to_download(streaming):
    with pytest.raises(ValueError, match="could not be downloaded from the Hub") as caught:
        list(Repository("nobody/nothing", COMMIT).read("data/*.parquet", streaming))
    command = f"hf download nobody/nothing --repo-type dataset --revision {COMMIT} --include 'data/*.parquet'"
    assert command in str(caught.value) and "datasets--nobody--nothing" in str(caught.value)


def test_without_a_hub_datasets_say_so_too():
    with pytest.raises(ValueError, match="hf download nobody/nothing --repo-type dataset --revision main"):
        list(Repository("nobody/nothing", "main").load(None, "train", True))
    with pytest.raises(ValueError, match="could not be downloaded"):
        Repository("nobody/nothing", "main").commit()


def test_a_commit_is_its_own_and_a_branch_may_move():
    assert Repository("a/b", COMMIT).commit() == COMMIT
    assert is_commit(COMMIT) and not is_commit("main") and not is_commit(COMMIT[:10])


def test_files_of_a_repository_are_read_in_order_with_their_damage(tmp_path):
    (tmp_path / "data").mkdir()
    for name, text in {"data/b.jsonl": '{"a": 1}\nbroken', "data/a.json": '[{"a": 0}]', "c.jsonl": '{"a": 9}'}.items():
        (tmp_path / name).write_text(text)
    first, second, bad = Repository(str(tmp_path), "main").read("data/*.json*", True)
    assert (first.id, first.fields, second.fields) == ("data/a.json#0", {"a": 0}, {"a": 1})
    assert isinstance(bad, Rejected) and bad.id == "data/b.jsonl#1"
    with pytest.raises(ValueError, match="no file that matches files='x/"):
        list(Repository(str(tmp_path), "main").read("x/*.json", True))


def test_files_of_the_hub_are_read_as_they_arrive(monkeypatch):
    """The hub's file system is like any other of fsspec; this one is in memory."""
    system = fsspec.filesystem("memory")
    root = f"/datasets/a/b@{COMMIT}"
    system.pipe({f"{root}/data/1.jsonl": b'{"n": 1}', f"{root}/data/0.jsonl": b'{"n": 0}\n{', f"{root}/x.md": b"no"})
    monkeypatch.setattr(Repository, "_reachable", lambda self: system)
    rows = list(Repository("a/b", COMMIT).read("data/*.jsonl", True))
    assert [row.id for row in rows] == ["data/0.jsonl#0", "data/0.jsonl#1", "data/1.jsonl#0"]
    assert [isinstance(row, Rejected) for row in rows] == [False, True, False]


def test_what_datasets_cannot_read_is_counted(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "a.jsonl").write_text("\n".join(json.dumps({"text": f"t{n}"}) for n in range(3)))
    (tmp_path / "repo" / "b.jsonl").write_text(json.dumps({"other": [1]}))
    rows = list(Repository(str(tmp_path / "repo"), "main").load(None, "train", True))
    assert [row.fields["text"] for row in rows[:3]] == ["t0", "t1", "t2"]
    assert all(not isinstance(row, Rejected) or "not readable by datasets" in row.reason for row in rows)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of the hub and of `datasets`, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    return tmp_path


def test_what_cannot_be_had_is_known_without_fetching_it(caches):
    with pytest.raises(HubError, match=rf"hf download some/Set_x --repo-type dataset --revision {COMMIT}"):
        Repository("some/Set_x", COMMIT).reach()
    snapshot = caches / "hub" / "datasets--some--Set_x" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    with pytest.raises(HubError):
        Repository("some/Set_x", COMMIT).reach()  # an interrupted download
    (snapshot / "a.parquet").touch()
    Repository("some/Set_x", COMMIT).reach()
    with pytest.raises(HubError):
        Repository("some/Set_x", "main").reach()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    Repository("some/Set_x", "main").reach()
    (caches / "datasets" / "other___set_y").mkdir(parents=True)
    Repository("other/SetY", COMMIT).reach()
    Repository(str(caches), "main").reach()  # a folder


def test_the_hub_is_asked_where_no_cache_has_it(caches, monkeypatch):
    from huggingface_hub import HfApi

    asked = []

    def info(self, repo, *, revision, timeout):
        asked.append((repo, revision, timeout))
        if repo != "some/set":
            raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", info)
    Repository("some/set", COMMIT).reach()
    with pytest.raises(HubError, match="ConnectionError: no route"):
        Repository("other/set", COMMIT).reach()
    assert [one[:2] for one in asked] == [("some/set", COMMIT), ("other/set", COMMIT)]
