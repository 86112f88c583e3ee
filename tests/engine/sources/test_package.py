"""Package archives: pinned, verified every time, and with a way out when there is no network."""

import hashlib
import re
import socket
import subprocess
import sys
import zipfile

import pytest

from pipeline.engine.errors import ArtifactError, ConfigError
from pipeline.engine.sources import package

WHEEL = "tiny_data-1.0-py3-none-any.whl"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that pip takes wheels from instead of a registry, with one wheel in it. Returns its source mapping."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_data/text.txt", "hello")
        wheel.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    return pinned(hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest())


def pinned(sha256="0" * 64, **changes):
    return {"kind": "package", "name": "tiny-data", "version": "1.0", "filename": WHEEL, "sha256": sha256, **changes}


def no_pip(*arguments, **keywords):
    raise AssertionError("nothing may be fetched")


def test_fetched_once_and_kept(shelf, tmp_path, monkeypatch):
    told = []
    found = package.fetch_all([{"a": [{"source": shelf}]}, {"b": shelf}], tmp_path / "cache", told.append)
    path = tmp_path / "cache" / "packages" / shelf["sha256"] / WHEEL
    assert found == {shelf["sha256"]: str(path)} and path.is_file() and len(told) == 1
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".lock")] == [WHEEL]
    monkeypatch.setattr(subprocess, "run", no_pip)
    assert package.fetch(shelf, tmp_path / "cache") == path


def test_damaged_file_in_the_cache_is_replaced(shelf, tmp_path):
    path = package.cached(shelf, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("damaged")
    package.fetch(shelf, tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == shelf["sha256"]


def test_another_hash_is_refused_and_not_kept(shelf, tmp_path):
    wrong = {**shelf, "sha256": "1" * 64}
    with pytest.raises(
        ArtifactError, match=f"sha256 {'1' * 64}: the fetched file has another sha256, {shelf['sha256']}"
    ):
        package.fetch(wrong, tmp_path)
    assert not package.cached(wrong, tmp_path).exists()


def test_not_in_the_registry(shelf, tmp_path):
    with pytest.raises(ArtifactError, match=r"tiny-data 9\.9.*the package registry has no wheel of this version"):
        package.fetch({**shelf, "version": "9.9"}, tmp_path)


def test_without_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
        with pytest.raises(ArtifactError) as caught:
            package.fetch(pinned(), tmp_path / "cache")
    text = str(caught.value)
    assert "no package registry can be reached" in text
    for needed in ("tiny-data 1.0", WHEEL, "0" * 64, str(package.cached(pinned(), tmp_path / "cache"))):
        assert needed in text
    assert "-m pip download --no-deps --only-binary :all: --ignore-requires-python -d . tiny-data==1.0" in text


def test_interpreter_without_pip(tmp_path, monkeypatch):
    message = f"{sys.executable}: No module named pip"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", message))
    with pytest.raises(ArtifactError, match=r"has no pip; install it with: .* -m ensurepip"):
        package.fetch(pinned(), tmp_path)


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"set paths\.cache elsewhere"):
        package.fetch(pinned(), tmp_path / "file")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "--index-url=http://x"},
        {"name": "a b"},
        {"version": ">=1"},
        {"version": "1.0 --pre"},
        {"filename": "../../x-1-py3-none-any.whl"},
        {"filename": "/etc/x-1-py3-none-any.whl"},
        {"filename": "x-1.tar.gz"},
        {"filename": "x.whl"},
        {"sha256": "ABC"},
        {"sha256": None},
    ],
)
def test_what_is_not_pinned_plainly_is_refused_before_pip_runs(tmp_path, monkeypatch, change):
    monkeypatch.setattr(subprocess, "run", no_pip)
    (key,) = change
    with pytest.raises(ConfigError, match=re.escape(f"params.a[0].{key}")):
        package.fetch_all([{"a": [pinned(**change)]}], tmp_path)


def test_platform_wheels_are_asked_for_by_their_tags():
    source = pinned(filename="x-1.0-cp312-cp312-manylinux_2_28_x86_64.manylinux2014_x86_64.whl")
    text = " ".join(package.command(source, "."))
    assert "--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64" in text
    assert "--implementation cp --python-version 3.12 --abi cp312" in text
    assert "--platform" not in package.command(pinned(), ".")
