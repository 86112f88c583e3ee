from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.data.sources import archive
from pipeline.data.sources.archive import extract_member, open_archive, read_members


def _zip(path: Path, members: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as handle:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            handle.writestr(info, data)
    return path


def _tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as handle:
        for info, data in entries:
            info.size = len(data)
            handle.addfile(info, io.BytesIO(data))
    return path


def test_reads_selected_members_by_name_from_zip_and_tar(tmp_path):
    zipped = _zip(tmp_path / "a.whl", {"p/b.txt": b"two", "p/a.txt": b"one", "p/c.bin": b"no"})
    tarred = _tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("p/b.txt"), b"two"), (tarfile.TarInfo("p/a.txt"), b"one"))
    for path in (zipped, tarred):
        assert list(read_members(path, ["**/*.txt"])) == [("p/a.txt", b"one"), ("p/b.txt", b"two")]
        assert extract_member(path, "p/a.txt", tmp_path / "out") == tmp_path / "out/p/a.txt"
        assert (tmp_path / "out/p/a.txt").read_bytes() == b"one"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "C:/x", "a\\..\\x"])
def test_refuses_names_that_lead_out(tmp_path, name):
    with pytest.raises(ValueError, match="leads out"):
        list(read_members(_zip(tmp_path / "a.zip", {name: b"", "ok": b""}), ["ok"]))
    with pytest.raises(ValueError, match="leads out"):
        extract_member(_tar(tmp_path / "a.tar.gz", (tarfile.TarInfo(name), b"")), name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_links_among_what_is_asked_for(tmp_path):
    link = tarfile.TarInfo("p/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tarred = _tar(tmp_path / "a.tar.gz", (link, b""), (tarfile.TarInfo("p/file"), b"x"))
    zipped = _zip(tmp_path / "a.zip", {"p/link": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    for path in (tarred, zipped):
        with pytest.raises(ValueError, match="link"):
            list(read_members(path, ["**"]))
    assert list(read_members(tarred, ["p/file"])) == [("p/file", b"x")]


def test_refuses_absurd_sizes(tmp_path, monkeypatch):
    path = _zip(tmp_path / "a.zip", {"a": bytes(1000), "b": bytes(1000)})
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1500)
    with pytest.raises(ValueError, match="2,000 bytes"):
        list(read_members(path, ["*"]))
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 999)
    with pytest.raises(ValueError, match="1,000 bytes"):
        list(read_members(path, ["a"]))


def test_a_member_longer_than_it_says_is_refused_while_reading(tmp_path):
    with open_archive(_zip(tmp_path / "a.zip", {"a": bytes(1000)})) as opened:
        (member,) = opened.select(["a"])
        lying = archive.Member(member.name, 10, False)
        with pytest.raises(ValueError, match="longer than the 10 declared"):
            opened.read(lying)


def test_refuses_doubled_names_other_formats_and_no_match(tmp_path):
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "twice.zip", "w") as handle:
        handle.writestr("a", b"1")
        handle.writestr("a", b"2")
    with pytest.raises(ValueError, match="two members"):
        list(read_members(tmp_path / "twice.zip", ["a"]))
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ValueError, match="neither"):
        list(read_members(tmp_path / "text", ["a"]))
    with pytest.raises(ValueError, match="no member that matches"):
        list(read_members(_zip(tmp_path / "a.zip", {"a": b""}), ["*.py"]))


def test_one_member_by_its_exact_name(tmp_path):
    path = _zip(tmp_path / "a.whl", {"p/m[1].gguf": b"one", "p/m1.gguf": b"two"})
    assert extract_member(path, "p/m[1].gguf", tmp_path / "out") == tmp_path / "out/p/m[1].gguf"
    assert (tmp_path / "out/p/m[1].gguf").read_bytes() == b"one"
    with pytest.raises(ValueError, match="no member"):
        extract_member(path, "p/m", tmp_path / "out")
