"""Damaged and odd data through the whole preparation: nothing crashes midway, and nothing is dropped in silence."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.corpus import Place
from pipeline.data.documents import LONGEST_RUN, LocalFiles, Text
from pipeline.data.encoding import Encoding
from pipeline.data.split import HeldOut
from pipeline.data.text import TextData
from pipeline.data.tokens import open_store

NOTHING_HELD_OUT = HeldOut(bytes=0, fraction=None, threshold=0.5, seed=1)
GOOD = {"good.jsonl": "\n".join(json.dumps({"text": f"good document {number}"}) for number in range(5)).encode()}


@pytest.fixture
def prepared(tokenizer, tmp_path):
    """Writes files, prepares them as one source, and gives (metrics of the source, rejected rows, texts trained on)."""

    def prepare(files, bad_rows="skip", held_out=NOTHING_HELD_OUT, encoding=None):
        root, out = tmp_path / "in", tmp_path / f"out-{bad_rows}"
        for directory in (root, out):
            directory.mkdir(exist_ok=True)
        for name, data in {**GOOD, **files}.items():
            (root / name).write_bytes(data)
        source = Text(LocalFiles({"kind": "local", "path": "in"}), 1.0, "text", None, None)
        place = Place(
            lambda source: root, lambda source: sorted(p.name for p in root.iterdir()), out, lambda **fields: None,
            encoding or Encoding(),
        )  # fmt: skip
        metrics = TextData({"a": source}, {}, bad_rows, None, held_out).prepare(tokenizer, place)
        store = open_store(out, "a")
        bounds = zip(store.offsets[:-1], store.offsets[1:] - 1, strict=True)
        texts = [tokenizer.decode(store.tokens[a:b], clean_up_tokenization_spaces=False) for a, b in bounds]
        rejected = [json.loads(line) for line in (out / "rejected.jsonl").open()]
        return metrics["sources"]["a"], rejected, texts

    return prepare


def _parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _lines(*rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


BAD = {
    "invalid-utf8-file": ({"x.txt": b"caf\xe9"}, {"invalid UTF-8": 1}, 0),
    "invalid-utf8-line": ({"x.jsonl": b'{"text": "\xff"}\n{"text": "fine"}'}, {"invalid UTF-8": 1}, 1),
    "lone-surrogate": ({"x.jsonl": b'{"text": "\\ud800"}\n{"text": "fine"}'}, {"invalid UTF-8": 1}, 1),
    "empty": ({"x.txt": b"", "y.txt": b" \n\t ", "z.jsonl": _lines({"text": None}, {"text": ""})}, {"empty": 4}, 0),
    "truncated-gz": ({"x.txt.gz": gzip.compress(b"text " * 99)[:-9]}, {"broken gzip (EOFError)": 1}, 0),
    "truncated-parquet": (
        {"x.parquet": _parquet([{"text": "lost"}])[:-20]}, {"not readable as parquet (ArrowInvalid)": 1}, 0,
    ),
    "mixed-schemas": (
        {"x.jsonl": _lines({"text": "fine"}, {"body": "b"}, {"text": 7}, {"text": ["a"]}, [1]),
         "y.parquet": _parquet([{"content": "c", "n": 1}]), "z.parquet": _parquet([{"n": 1.5, "text": "fine"}])},
        {"no column 'text'": 2, "column 'text' is no text": 2, "not a JSON object": 1}, 2,
    ),
    "nul": ({"x.txt": b"a\0b"}, {"holds a NUL byte": 1}, 0),
    "deep-json": ({"x.jsonl": b"[" * 200_000, "y.jsonl": b'{"n":' * 100_000}, {"invalid JSON": 2}, 0),
    "huge-number": ({"x.jsonl": b'{"text": "a", "n": ' + b"9" * 5000 + b"}"}, {"invalid JSON": 1}, 0),
    "one-word": (
        {"x.txt": b"x" * (LONGEST_RUN + 1)}, {"one run of characters without white space": 1}, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_counted_listed_and_skipped_or_refused(prepared, case):
    files, reasons, num_good = BAD[case]
    found, rejected, texts = prepared(files)
    assert found["rejected"] == reasons and found["left_out"] == {}
    assert len(rejected) == sum(reasons.values()) and {row["reason"] for row in rejected} == set(reasons)
    assert all(row["source"] == "a" and row["id"].split("#")[0] in files for row in rejected)
    assert len(texts) == found["documents"] == 5 + num_good
    with pytest.raises(ValueError, match=rf"source 'a': {len(rejected)} of \d+ rows cannot be used.*bad_rows=skip"):
        prepared(files, bad_rows="refuse")


def test_rows_before_the_damage_are_kept(prepared):
    lines = "\n".join(json.dumps({"text": f"row {n} {'x y z ' * (n % 50)}"}) for n in range(900)).encode()
    found, rejected, texts = prepared({"x.jsonl.gz": gzip.compress(lines)[:-9]})
    assert found["rejected"]["broken gzip (EOFError)"] == 1 and rejected[-1]["reason"].startswith("broken gzip")
    assert found["documents"] > 600 and texts[5].startswith("row 0 ")


@pytest.mark.parametrize(
    "text",
    [
        "Emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea and a flag",
        "مرحبا بالعالم 123، كيف الحال؟\n\u202bשלום עולם\u202c",
        "e\u0301 and \u00e9, ﬁ, \u200b, \u00a0 and \u2028\u3000 stay as they are",
        "\ufffd is no reason to leave a text out",
    ],
    ids=["emoji", "right-to-left", "combining", "replacement"],
)
def test_unusual_text_is_kept_to_the_character(prepared, text):
    found, rejected, texts = prepared({"x.jsonl": _lines({"text": text})})
    assert text in texts and found["documents"] == 6 and not rejected


def test_rows_left_out_by_a_rule_are_no_reason_to_refuse(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "x.jsonl").write_bytes(_lines({"text": "words and more words"}, {"text": "1 2 3 4 5"}))
    source = Text(LocalFiles({"kind": "local", "path": "in"}), 1.0, "text", None, 0.5)
    place = Place(lambda s: tmp_path / "in", lambda s: ["x.jsonl"], tmp_path / "out", lambda **fields: None)
    metrics = TextData({"a": source}, {}, "refuse", None, NOTHING_HELD_OUT).prepare(tokenizer, place)
    assert metrics["sources"]["a"]["left_out"] == {"mostly digits and punctuation": 1}
    assert metrics["rejected"] == 0


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match=r"data\.bad_rows='ignore' must be skip .* or refuse"):
        TextData({"a": None}, {}, "ignore", None, NOTHING_HELD_OUT)


@pytest.mark.slow
def test_one_document_of_50_megabytes(prepared):
    """Beside ordinary ones, with a part held out; tokens equal to the character."""
    draw = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in ("form", "list", "tree", "node") for b in ("", "s", "_x(", "):\n    ")])
    long = " ".join(words[draw.integers(0, len(words), 7_000_000)])
    assert len(long) > 50_000_000 - 5_000_000
    held_out = HeldOut(bytes=20, fraction=None, threshold=0.5, seed=1)
    found, rejected, texts = prepared({"x.txt": long.encode()}, held_out=held_out)
    assert not rejected and found["documents"] + found["held_out_documents"] == 6
    assert any(text == long for text in texts)
