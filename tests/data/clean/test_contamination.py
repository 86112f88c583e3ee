"""Text of evaluation sets in training documents: found, left out, and said where and what."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.data.clean.contamination import Contamination, Decontamination, EvaluationTexts
from pipeline.data.clean.split import HeldOut
from pipeline.data.corpus import Workspace, read_sources
from pipeline.data.sources.documents import LocalFiles, Text
from pipeline.data.text import TextData

QUESTION = "Which of these four statements explains best why a leaf that is kept in the dark turns pale?"
CODE = 'def close_elements(numbers, threshold):\n    """ Check if in a given list of numbers any two are closer. """\n'


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def sets(tmp_path):
    _write(tmp_path / "exam" / "x.jsonl", [{"id": 1, "question": QUESTION, "gold": "B"}, {"id": 2, "question": "Why?"}])
    _write(tmp_path / "code" / "x.jsonl", [{"doc": {"prompt": CODE, "tests": ["assert a == b"]}}])

    def local(name):
        return LocalFiles({"kind": "local", "path": name})

    return {"exam": EvaluationTexts(local("exam"), ["question"]), "code": EvaluationTexts(local("code"), None)}


def _found(tmp_path, sets, **changes):
    wanted = Decontamination(sets, **{"ngram": 13, "min_words": 8, **changes})
    return Contamination(wanted).read(lambda s: tmp_path / s["path"], lambda s: ["x.jsonl"])


def test_an_overlap_is_found_whatever_case_and_punctuation(tmp_path, sets):
    found = _found(tmp_path, sets)
    hit = found.find("From an old exam: " + QUESTION.upper().replace(" ", "\n\t") + "!!")
    assert (hit.evaluation, hit.item) == ("exam", "x.jsonl#0")
    assert hit.text.startswith("WHICH\n\tOF") and hit.text.endswith("IS\n\tKEPT")
    words = QUESTION.split()
    assert found.find(" ".join(words[3:16])) is not None
    assert found.find(" ".join(words[3:15])) is None
    assert found.find("Why? Why?") is None and found.find("") is None


def test_what_is_found_agrees_with_sets_of_tuples(tmp_path):
    draw = np.random.default_rng(0)
    items = [" ".join(f"w{n}" for n in draw.integers(0, 4, 30)) for _ in range(40)]
    documents = [" ".join(f"w{n}" for n in draw.integers(0, 4, draw.integers(1, 60))) for _ in range(400)]
    _write(tmp_path / "e" / "x.jsonl", [{"t": item} for item in items])
    found = _found(tmp_path, {"e": EvaluationTexts(LocalFiles({"kind": "local", "path": "e"}), ["t"])}, ngram=8)

    def grams(text):
        words = text.split()
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    known = set.union(*map(grams, items))
    expected = [bool(grams(document) & known) for document in documents]
    assert [found.find(document) is not None for document in documents] == expected
    assert 20 < sum(expected) < 380


def test_documents_are_left_out_and_the_report_says_which_and_why(tokenizer, tmp_path, sets):
    draw = np.random.default_rng(1)
    plain = [" ".join(f"w{n}" for n in draw.integers(0, 5000, 40)) for _ in range(20)]
    _write(
        tmp_path / "in" / "x.jsonl", [{"text": text} for text in [*plain, f"Q: {QUESTION} A: B", "# copied\n" + CODE]]
    )
    (tmp_path / "out").mkdir()
    place = Workspace(lambda s: tmp_path / s["path"], lambda s: ["x.jsonl"], tmp_path / "out", lambda **fields: None)
    source = Text(LocalFiles({"kind": "local", "path": "in"}), 1.0, "text", None, None)
    held_out = HeldOut(bytes=0, fraction=None, threshold=0.5, seed=1)
    data = TextData({"in": source}, {}, "refuse", Decontamination(sets, 13, 8), held_out)
    metrics = data.prepare(tokenizer, place)
    assert metrics["overlap"] == {
        "ngram": 13,
        "removed": {"in": 2},
        "sets": {"exam": {"items": 2, "met": 1, "too_short": 1}, "code": {"items": 1, "met": 1, "too_short": 0}},
    }
    assert metrics["documents"] == 20 and metrics["rejected"] == 0
    assert metrics["sources"]["in"]["left_out"] == {"overlaps an evaluation set": 2}
    assert read_sources(tmp_path / "out")["overlap"] == metrics["overlap"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "overlap.jsonl").open()]
    assert [(line["document"], line["evaluation"]) for line in lines] == [
        ("x.jsonl#20", "exam"),
        ("x.jsonl#21", "code"),
    ]
    assert lines[0]["text"].startswith("Which of these")


def test_sets_that_cannot_be_compared_are_refused(tmp_path, sets):
    with pytest.raises(ValueError, match="min_words=14 must lie between 1 and ngram=13"):
        _found(tmp_path, sets, min_words=14)
    with pytest.raises(ValueError, match="sets is empty"):
        _found(tmp_path, {})
    with pytest.raises(ValueError, match="no field 'answer'"):
        _found(tmp_path, {"exam": EvaluationTexts(sets["exam"].origin, ["answer"])})
