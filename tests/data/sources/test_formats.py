"""Files as people have them: CSV and TSV, JSON of several shapes, other encodings, and names that are not UTF-8."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.chat.columns import ByColumns
from pipeline.data.chat.conversations import Chats
from pipeline.data.chats import ChatData
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Workspace, read_sources, write_lines
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.data.sources.formats import rows_of_file
from pipeline.data.sources.json_rows import DUPLICATE_KEY, WRONG_ENCODING
from pipeline.data.sources.rows import Rejected, Row, columns
from pipeline.data.text import TextData
from pipeline.engine.sources.locations import listing, localize
from tests.data.chat.test_columns import ROLES


def _read(name, data):
    return list(rows_of_file(name, io.BytesIO(data)))


def _fields(name, data):
    return [row.fields for row in _read(name, data) if isinstance(row, Row)]


def _reasons(name, data):
    return [row.reason for row in _read(name, data) if isinstance(row, Rejected)]


CSV = b'\xef\xbb\xbfq,a,\r\n"two\nlines, and ""quotes""",17,\r\n\r\n' + '"\u00e9\0",,x\n'.encode()


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.csv.gz", "a.tsv"])
def test_csv_and_tsv(name):
    data = CSV.replace(b",", b"\t") if name == "a.tsv" else CSV
    comma = "\t" if name == "a.tsv" else ","
    rows = _fields(name, gzip.compress(data) if name.endswith(".gz") else data)
    assert rows == [{"q": f'two\nlines{comma} and "quotes"', "a": "17", "": ""}, {"q": "\u00e9\0", "a": "", "": "x"}]


def test_a_malformed_record_of_csv_is_rejected_alone():
    data = b'q,a\n1,2,3\n"x" y,z\nok,yes\n\xff,1\n' + b"w" * 300_000 + b',long\nend,"open\nmore\n'
    assert [row["a"] for row in _fields("a.csv", data)] == ["yes", "long"]
    assert _reasons("a.csv", data) == [
        "number of values differs from the header", "invalid CSV", "invalid UTF-8", "invalid CSV",
    ]  # fmt: skip
    assert [row.id for row in _read("a.csv", data)] == [f"a.csv#{n}" for n in range(6)]


def test_a_csv_header_is_needed():
    for data in (b"a,a\n1,2\n", b"\xff,b\n1,2\n", b'"a\n'):
        assert _reasons("a.csv", data) == ["unreadable header or duplicate column name"]
    assert _reasons("a.csv", b"") == _reasons("a.csv", b"\n\n") == ["empty"] == _reasons("a.csv", b"q,a\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_wide_encodings_are_one_clear_error(name, encoding):
    (found,) = _read(name, '{"a": 1}\n{"a": 2}\n'.encode(encoding))
    assert (found.reason, "iconv" in found.detail) == (WRONG_ENCODING, True)
    marked = encoding in ("utf-16", "utf-32")
    assert _reasons("a.txt", "words\n".encode(encoding)) == ([WRONG_ENCODING] if marked else [])


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a"])
def test_json_rows_under_the_name_of_text_are_said(name):
    pack = gzip.compress if name.endswith(".gz") else bytes
    for data in (b'{"text": "a"}\n\n{"text": "b"}\n', b'\xef\xbb\xbf{"text": 1}', b'[{"a": 1},\n {"b": 2}]'):
        (found,) = _read(name, pack(data))
        assert found.reason == "JSON rows in a text file" and "rename it to .jsonl" in found.detail
    for data in (b"{braces} in prose\n", b'{"text": "a"}\nwords\n', b"[1, 2]", b"[{not json", b'["a"]'):
        assert len(_fields(name, pack(data))) == 1
    assert len(_fields("a.py", b'{"text": "a"}\n')) == 1


def test_a_json_file_of_one_object():
    one = {"version": 1, "data": [{"q": "a"}, {"q": "b"}]}
    for data in (json.dumps(one), json.dumps(one, indent=1), "\ufeff\n" + json.dumps(one, indent=1)):
        (row,) = _read("a.json", data.encode())
        assert row.fields == one
        assert "'data' (a list of 2 objects; if these are the rows, write them to a file of their own)" in columns(one)
    found = ByColumns(ROLES).chat(row)
    assert found.reason == "columns of no known form" and "if these are the rows" in found.detail
    assert _reasons("a.json", b'{\n"a": 1\n}\n{\n"a": 2\n}\n') == ["invalid JSON"]
    # One line that is cut off is not an object over several lines.
    assert _fields("a.json", b'{"a": 1\n{"a": 2}\n{"a": 3}\n') == [{"a": 2}, {"a": 3}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_twice_in_an_object_is_not_passed_over(name):
    rows = ['{"a": 1, "a": 1}', '{"a": 2}', '{"b": [{"c": 1, "d": {"x": 1, "x": 2}}]}', '{"a": 3}']
    data = "\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]"
    found = _read(name, data.encode())
    assert [row.reason if isinstance(row, Rejected) else row.fields for row in found] == [
        DUPLICATE_KEY, {"a": 2}, DUPLICATE_KEY, {"a": 3},
    ]  # fmt: skip
    assert [row.detail for row in found if isinstance(row, Rejected)] == ["'a'", "'x'"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt.gz", "a.csv", "a.parquet"])
def test_a_file_without_rows_is_counted(name):
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), sink)
    data = {"a.parquet": sink.getvalue(), "a.txt.gz": gzip.compress(b"")}.get(name, b"")
    found = _read(name, data)
    assert [row.reason for row in found if isinstance(row, Rejected)] == ([] if name == "a.txt.gz" else ["empty"])


def _parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_maps_dictionaries_and_large_strings_of_a_table_are_plain_values():
    pairs = pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))
    words = pa.array(["x", "y"]).dictionary_encode()
    long = pa.array(["x", "y"], pa.large_string())
    first, second = _read("a.parquet", _parquet(pa.table({"pairs": pairs, "words": words, "long": long})))
    assert first == Row("a.parquet#0", {"pairs": {"a": 1}, "words": "x", "long": "x"}, nulls_are_absent=True)
    assert second.reason == "unreadable value (KeyError)"


def test_a_time_that_python_cannot_hold_rejects_its_row_alone():
    times = pa.array([10**8, None], pa.date32())
    bad, good = _read("a.parquet", _parquet(pa.table({"at": times, "text": ["a", "b"]})))
    assert bad.reason.startswith("unreadable value") and good.fields == {"at": None, "text": "b"}
    days = pa.table({"at": [datetime.date(2026, 1, 1)]})
    assert _fields("a.parquet", _parquet(days)) == [{"at": datetime.date(2026, 1, 1)}]


def test_a_table_that_names_a_column_twice():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert _read("a.arrow", sink.getvalue()) == [Rejected("a.arrow", "duplicate column name", "a")]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_whose_column_names_are_not_utf8_is_rejected(kind):
    table, sink = pa.table({"text": ["a"], "zqzq": [1]}), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink, store_schema=False)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (found,) = _read(f"a.{kind}", sink.getvalue().replace(b"zqzq", b"z\xff\xfez"))
    assert found.reason == "column names are not UTF-8"


NOTHING_HELD_OUT = HeldOut(bytes=0, fraction=None, threshold=0.5, seed=1)
SAID = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]


def _prepare(tokenizer, tmp_path, kind):
    """Prepares every file of tmp_path/in, whatever its name is: (metrics of the source, rejected rows, ids)."""
    root, out = tmp_path / "in", tmp_path / "out"
    out.mkdir()
    origin = LocalFiles({"kind": "local", "path": "in"})
    place = Workspace(lambda source: root, lambda source: listing(root), out, lambda **fields: None)
    if kind == "chat":
        data = ChatData({"a": Chats(origin, 1.0, ByColumns(ROLES))}, "skip", None, NOTHING_HELD_OUT, None)
    else:
        data = TextData({"a": Text(origin, 1.0, "text", None, None)}, {}, "skip", None, NOTHING_HELD_OUT)
    metrics = data.prepare(tokenizer, place)
    assert read_sources(out)["sources"] == metrics["sources"]
    assert metrics.get("ignored_keys", {}).get("a", {}) == metrics["sources"]["a"]["ignored_keys"]
    rejected, ids = ([json.loads(line) for line in (out / name).open()] for name in ("rejected.jsonl", "a.ids.jsonl"))
    json.dumps(metrics, ensure_ascii=False).encode()
    return metrics["sources"]["a"], rejected, ids


def _write(root, name, data):
    os.makedirs(root, exist_ok=True)
    with open(os.path.join(os.fsencode(root), name), "wb") as stream:
        stream.write(data)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_names_that_are_not_utf8_are_written_escaped(tokenizer, tmp_path, kind):
    row = {"messages": SAID, "text": "some words"}
    good = json.dumps({**row, "\ud83d key": 1}).encode()
    _write(tmp_path / "in", b"caf\xe9.jsonl", good + b'\n{"\\ud83d broken": 1}\n' + good)
    _write(tmp_path / "in", b"b\xe9.csv", b"a,a\n")
    found, rejected, ids = _prepare(tokenizer, tmp_path, kind)
    assert ids == ["caf\\udce9.jsonl#0", "caf\\udce9.jsonl#2"]
    assert {line["id"] for line in rejected} == {"b\\udce9.csv", "caf\\udce9.jsonl#1"}
    assert any("\\ud83d broken" in line["detail"] for line in rejected)
    assert found["ignored_keys"]["\\ud83d key"] == 2


def test_what_utf8_cannot_spell_is_written_as_json_escapes_it(tmp_path):
    write_lines(tmp_path / "x.jsonl", [json.dumps({"id": "\ud83d", "e": "\u00e9"}, ensure_ascii=False)])
    assert json.loads((tmp_path / "x.jsonl").read_text(encoding="utf-8")) == {"id": "\ud83d", "e": "\u00e9"}


def test_text_in_a_column_of_csv(tokenizer, tmp_path):
    _write(tmp_path / "in", b"x.csv", b'url,text\nu,"some\nwords"\nu,more\n')
    found, rejected, ids = _prepare(tokenizer, tmp_path, "text")
    assert ids == ["x.csv#0", "x.csv#1"] and not rejected and found["ignored_keys"] == {"url": 2}


def test_files_whose_names_are_not_utf8_have_an_identity(tmp_path):
    _write(tmp_path / "in", b"caf\xe9.jsonl", b"{}")
    source = {"kind": "local", "path": str(tmp_path / "in")}
    params, locations = localize({"data": source}, tmp_path / "cache")
    assert params["data"]["content"] in locations
    _write(tmp_path / "in", b"caf\xe8.jsonl", b"{}")
    assert localize({"data": source}, tmp_path / "cache")[0] != params


def test_half_a_surrogate_pair_in_what_is_said_rejects_the_row(tokenizer, tmp_path):
    rows = [{"messages": SAID}, {"messages": [SAID[0], {"role": "assistant", "content": "\ud83d"}]}]
    _write(tmp_path / "in", b"x.jsonl", "\n".join(map(json.dumps, rows)).encode())
    found, rejected, ids = _prepare(tokenizer, tmp_path, "chat")
    assert found["rejected"] == {"invalid UTF-8": 1} and ids == ["x.jsonl#0"] and rejected[0]["id"] == "x.jsonl#1"


def test_a_folder_of_several_formats_and_columns(tokenizer, tmp_path):
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    files = {
        "a.jsonl": json.dumps({"messages": SAID}).encode(),
        "b.json": json.dumps([{"conversations": shared}]).encode(),
        "c.csv": b"instruction,input,output\nAdd.,1 2,3\n",
        "d.parquet": _parquet(pa.Table.from_pylist([{"prompt": "a", "completion": "b", "n": 1}])),
        "e.txt": b"not rows",
        "f.tsv": b"prompt\tscore\na\t1\n",
    }
    for name, data in files.items():
        _write(tmp_path / "in", name.encode(), data)
    found, rejected, ids = _prepare(tokenizer, tmp_path, "chat")
    assert ids == ["a.jsonl#0", "b.json#0", "c.csv#0", "d.parquet#0"] and found["ignored_keys"] == {"n": 1}
    assert [line["id"] for line in rejected] == ["e.txt", "f.tsv#0"]
    assert found["rejected"] == {"columns of no known form": 2}
