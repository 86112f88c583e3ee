"""What a plan finds out about data on this machine, with the words of the stage that would read it."""

from __future__ import annotations

import gzip
import json

import pytest

from pipeline.data.chat.columns import ByColumns
from pipeline.data.chat.conversations import Chats
from pipeline.data.chats import ChatData
from pipeline.data.clean.split import HeldOut
from pipeline.data.first_rows import NUM_ROWS, check_first_rows
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.data.text import TextData

HELD_OUT = HeldOut(None, 0.1, 0.5, 0)
GOOD = json.dumps({"text": "some words", "prompt": "Why?", "answer": "So."})


@pytest.fixture
def look(tmp_path):
    """Looks at a file of this content as the only source."""

    def look(content, name="rows.jsonl", bad_rows="skip", kind="text"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode())
        origin = LocalFiles({"kind": "local", "content": "x"})
        if kind == "chat":
            data = ChatData({"own": Chats(origin, 1.0, ByColumns({}))}, bad_rows, None, HELD_OUT, None)
        else:
            own, elsewhere = (
                {"own": Text(origin, 1.0, "text", None, None)},
                {"far": Text(None, 1.0, "text", None, None)},
            )
            data = TextData(*((elsewhere, own) if kind == "replay" else (own, {})), bad_rows, None, HELD_OUT)
        check_first_rows(data, lambda _: tmp_path, lambda _: [name], "pretrain.data")

    return look


@pytest.mark.parametrize("kind", ["text", "chat", "replay"])
@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (["{bad", "worse"], "rows.jsonl", r"rejected: \{'invalid JSON': 2\}; the first is 'rows.jsonl#0'"),
        (gzip.compress(b"{bad\n"), "rows.jsonl.gz", "invalid JSON"),
        (b"\xff\xfe{\0}\0", "rows.json", "UTF-16"),
        (b"", "rows.jsonl", "empty"),
        ('{"text": "café", "prompt": "café", "answer": "é"}'.encode("latin-1"), "rows.jsonl", "iconv -f ISO-8859-1"),
    ],
)
def test_a_source_of_which_no_row_is_used_is_refused(look, kind, content, name, reason):
    with pytest.raises(ValueError, match=f"^source 'own' is empty: it gives no usable document; .*{reason}"):
        look(content, name, kind=kind)


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_bad_rows_stop_the_plan_only_where_they_stop_the_stage(look, kind):
    look(["{bad", GOOD], kind=kind)
    with pytest.raises(ValueError, match=r"source 'own': 1 of 2 rows cannot be used; rejected: .'invalid JSON': 1"):
        look(["{bad", GOOD], kind=kind, bad_rows="refuse")
    look([GOOD, GOOD], kind=kind, bad_rows="refuse")


def test_no_more_than_the_first_rows_are_read(look):
    look(["{bad"] * NUM_ROWS + [GOOD])
    look(["{bad"] * 2 * NUM_ROWS)  # which the stage finds out
    with pytest.raises(ValueError, match=f"1 of the first {NUM_ROWS} rows cannot be used"):
        look(["{bad", *[json.dumps({"text": "w"})] * 2 * NUM_ROWS], bad_rows="refuse")


def test_a_column_that_is_not_there_is_explained_with_the_key(look):
    with pytest.raises(
        ValueError,
        match=r"no field 'text'; the row has \['content'\]\); set pretrain\.data\.sources\.own\.text_field=content",
    ):
        look(['{"content": "some words"}'])
    with pytest.raises(
        ValueError, match=r"set pretrain\.data\.sources\.own\.text_field to the column of the text, such as content"
    ):
        look(['{"content": "some words", "title": "x"}'])
