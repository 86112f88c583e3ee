"""Text in general: read from its source by content and not by order, within its bounds."""

import json
from types import SimpleNamespace

import pytest

from pipeline.data.general_text import ReadsGeneralText, check_bounds, general_rows
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.models.architecture.tiny import byte_tokenizer

SOURCE = Text(LocalFiles({"kind": "local", "content": "x"}), 1.0, "text", None, None)


def reader(window, max_tokens):
    return SimpleNamespace(general=SOURCE, window=window, max_tokens=max_tokens)


def test_rows_are_the_heads_of_documents_whatever_the_order_of_files(tmp_path):
    for name, text in (("a", "abcdefgh"), ("b", "ijk"), ("c", "l")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    found = [
        general_rows(reader(4, 100), byte_tokenizer(), 300, lambda source: tmp_path, lambda source, names=names: names)
        for names in (["a.jsonl", "b.jsonl", "c.jsonl"], ["c.jsonl", "b.jsonl", "a.jsonl"])
    ]
    assert found[0] == found[1] and all(2 <= len(row) <= 4 for row in found[0]) and len(found[0]) >= 2


def test_bounds_under_which_nothing_is_predicted_are_refused():
    assert isinstance(reader(2, 2), ReadsGeneralText) and not isinstance(object(), ReadsGeneralText)
    check_bounds(reader(2, 2))
    with pytest.raises(ValueError, match="window=1 and max_tokens=80 must be at least 2"):
        check_bounds(reader(1, 80))
