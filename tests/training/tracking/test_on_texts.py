"""Measures of training on the texts of a run: the numbers of the benchmarks on the saved model, for the same texts."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.evaluation.base import Workspace, score
from pipeline.evaluation.text.base_samples import BaseSamples, write_samples
from pipeline.evaluation.text.drift import Drift
from pipeline.evaluation.text.perplexity import HeldOutText
from pipeline.evaluation.text.tracked import tracked_texts
from pipeline.models import load, load_tokenizer
from pipeline.training import recipe
from pipeline.training.fit import fit
from pipeline.training.methods.strategy import Full
from pipeline.training.settings import Settings
from tests.training import knobs
from tests.training.processes import curve
from tests.training.ranks import stream_of

TEXTS = ["def grow(blocks):\n    return blocks + 8\n", "Zwölf Boxkämpfer jagen Viktor", "A longer text. " * 9, "Short."]
BOUNDS = {"documents": None, "sources": None, "max_items": None}


@pytest.fixture(scope="module")
def base(make_model) -> Path:
    return Path(make_model("float32", initializer_range=0.2))


@pytest.fixture(scope="module")
def inputs(base, tmp_path_factory) -> dict[str, Path]:
    """A data artifact's held-out part, and samples of the base."""
    root = tmp_path_factory.mktemp("inputs")
    lines = (json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (root / "own.heldout.jsonl").write_text("".join(lines))
    (root / "sources.json").write_text(json.dumps({"kind": "text", "sources": {"own": {}}}))
    samples = BaseSamples(4, ["Why?", "Who are you?"], 24, 0, None, {})
    write_samples(samples.draw(load(base, dtype=torch.float32), load_tokenizer(base)), root)
    return {"domain": root, "samples": root}


def texts(name, base, inputs, **bounds):
    return tracked_texts(name, inputs, load_tokenizer(base), 300, {**knobs.TRACK, **bounds})


def test_documents_are_those_of_the_benchmark(base, inputs):
    found = texts("domain", base, inputs, domain_tokens=100, document_tokens=32)
    text = HeldOutText(window=32, max_document_tokens=32, max_tokens=100, **BOUNDS)
    wanted = text.passages(load_tokenizer(base), 300, Workspace(lambda _: None, lambda _: None, inputs["domain"]))
    assert found == wanted and 2 <= len(found) <= 4
    assert all(len(one.tokens) <= 32 for one in found) and sum(len(one.tokens) for one in found) <= 100


def test_samples_are_whole_and_of_each_kind_in_turn(base, inputs):
    found = texts("drift", base, inputs, drift_tokens=80)
    assert [one.id for one in found][:3] == ["free/000", "chat/000", "free/001"]
    assert sum(sum(one.scored) for one in found) <= 80 and all(sum(one.scored) <= 24 for one in found)
    assert len(texts("drift", base, inputs, drift_tokens=1)) == 1


def test_a_token_without_a_row_is_refused(base, inputs):
    with pytest.raises(ValueError, match="the model's embedding has 60 rows"):
        tracked_texts("domain", inputs, load_tokenizer(base), 60, knobs.TRACK)


def test_the_last_values_are_those_of_the_benchmarks_on_what_was_saved(base, inputs, tmp_path):
    track = {**knobs.TRACK, "every": 4, "domain_tokens": 10**6, "document_tokens": 50, "drift_tokens": 10**6}
    workspace = SimpleNamespace(params={"track": track, "seq_len": 64}, inputs=inputs)
    tracking = recipe._tracking(workspace, base, tracked_texts, base)
    runtime, device = knobs.launched(tmp_path)
    settings = Settings(**{**knobs.SETTINGS, "batch_size": 3, "num_steps": 8})
    fit(base, tmp_path / "model", Full(), settings, stream_of({}), {}, runtime, device, tracking)
    first, *_, last = [record for record in curve(tmp_path) if "track/drift" in record]
    model, tokenizer = load(tmp_path / "model", dtype=torch.float32), load_tokenizer(base)
    place = Workspace(lambda _: None, lambda _: None, inputs["domain"], reference=base, samples=inputs["samples"])
    text = {"window": 50, "max_document_tokens": 50, "max_tokens": None, **BOUNDS}
    assert last["track/domain"] == pytest.approx(score(HeldOutText(**text).run(model, tokenizer, place).items).value)
    items = Drift(**text).run(model, tokenizer, place).items
    drawn = score([item for item in items if item.category != "domain"]).value
    assert first["track/drift"] == 0.0 < 0.05 < drawn and last["track/drift"] == pytest.approx(drawn, rel=1e-4)
    base_score = score(HeldOutText(**text).run(load(base, dtype=torch.float32), tokenizer, place).items).value
    assert first["track/domain"] == first["base/domain"] == pytest.approx(base_score)


def test_texts_longer_than_a_row_are_left_out_and_said(base, inputs):
    workspace = SimpleNamespace(params={"track": {**knobs.TRACK, "drift_tokens": 10**6}, "seq_len": 40}, inputs=inputs)
    with pytest.warns(UserWarning, match=r"track: \d of 6 texts of drift are longer than a row and left out"):
        measures = recipe._tracking(workspace, base, tracked_texts, base).measures
    assert all(len(row["labels"]) <= 40 for one in measures for row in one.rows)
    workspace.params["seq_len"] = 4
    with pytest.raises(ValueError, match=r"drift has no text that fits into a row of seq_len=4"):
        recipe._tracking(workspace, base, tracked_texts, base)
