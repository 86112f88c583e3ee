"""Accuracy on held-out images: what a model is asked, the linear probe beside it, and who is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.data.corpus import Workspace as DataWorkspace
from pipeline.data.corpus import read_sources
from pipeline.data.images import HeldOutImages as Split
from pipeline.data.images import ImageData, Layout
from pipeline.evaluation.base import score
from pipeline.evaluation.vision.held_out_images import HeldOutImages
from pipeline.evaluation.vision.linear_probe import probe_answers
from pipeline.models import load
from tests.visual import TwoKinds, give_sight

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("images")
    place = DataWorkspace(lambda _: out, lambda _: [], out, lambda **_: None)
    ImageData({"a": TwoKinds(60, 1.0)}, "Where?", 4, None, Split(0.25, 0)).prepare(tokenizer, place)
    return out


@pytest.fixture(scope="module")
def seeing(make_model, tmp_path_factory):
    return load(give_sight(make_model(), tmp_path_factory.mktemp("seeing")), dtype=torch.float32)


def test_the_pick_is_the_answer_that_is_likeliest_after_image_and_question(data, seeing, tokenizer, inputs):
    outcome = HeldOutImages(None, 4).run(seeing, tokenizer, dataclasses.replace(inputs, data=data))
    assert len(outcome.items) == read_sources(data)["sources"]["a"]["held_out_documents"]
    layout, images = Layout.recorded(read_sources(data), tokenizer), np.load(data / "a.heldout.images.npy")
    by_id = {item.id: item for item in outcome.items}
    lines = (data / "a.heldout.jsonl").read_text().splitlines()
    for line, image in zip(map(yaml.safe_load, lines), images, strict=True):
        scores = {}
        for answer in ("above", "below"):
            before, after = layout.pair(answer)
            ids = torch.tensor([[*before, *after]])
            with torch.no_grad():
                pixels = torch.from_numpy(image[None].astype(np.float32) / 255)
                logits = seeing(input_ids=ids, pixel_values=pixels).logits.double().log_softmax(-1)
            scores[answer] = sum(logits[0, len(before) - 1 + i, token].item() for i, token in enumerate(after))
        item, pick = by_id[line["id"]], max(scores, key=scores.get)
        assert item.answer == pick and item.gold == line["answer"] and item.numerator == (pick == line["answer"])
        assert item.gold_loss.bits == pytest.approx(-scores[line["answer"]] / math.log(2), rel=1e-5)


def test_a_probe_stands_beside_it_with_the_difference(data, seeing, tokenizer, inputs):
    """Bright above or below is linear, so that it is always right."""
    outcome = HeldOutImages(None, 4).run(seeing, tokenizer, dataclasses.replace(inputs, data=data))
    assert all(item.parts["linear_probe"] == (1.0, 1.0) for item in outcome.items)
    accuracy = score(outcome.items).value
    assert "trained on the same 4" in outcome.notes[0] and "is right in 100.0%" in outcome.notes[0]
    assert f"the model beside it {100 * (accuracy - 1):+.1f} points" in outcome.notes[0]
    some = HeldOutImages(5, 4).run(seeing, tokenizer, dataclasses.replace(inputs, data=data))
    assert len(some.items) == 5 and {item.id for item in some.items} < {item.id for item in outcome.items}


def test_the_probe_is_softmax_regression_at_its_minimum():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 6)) * 4
    kinds = rng.integers(0, 3, 80)
    points = centres[kinds] + rng.normal(size=(80, 6))
    assert probe_answers(points[:60], kinds[:60].tolist(), points[60:], 3) == kinds[60:].tolist()
    from sklearn.linear_model import LogisticRegression

    from pipeline.evaluation.vision.linear_probe import _fit

    hard = rng.integers(0, 3, 80)  # nothing to find: the minimum itself is compared
    found = _fit(torch.from_numpy(points), torch.from_numpy(hard), 3, 0.01)
    theirs = LogisticRegression(C=1 / (0.01 * 80), tol=1e-10, max_iter=5000).fit(points, hard)
    torch.testing.assert_close(found[:-1].T, torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)


def test_an_answer_may_hold_what_ends_a_line_elsewhere(tokenizer, seeing, inputs, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Separated(TwoKinds):
        def read(self, locate, listing):
            return (one._replace(answer=f"{one.answer}\u2028\x85") for one in super().read(locate, listing))

    place = DataWorkspace(lambda _: tmp_path, lambda _: [], tmp_path, lambda **_: None)
    ImageData({"a": Separated(20, 1.0)}, "Where?", 4, None, Split(0.25, 0)).prepare(tokenizer, place)
    outcome = HeldOutImages(None, 4).run(seeing, tokenizer, dataclasses.replace(inputs, data=tmp_path))
    assert {item.gold for item in outcome.items} <= {"above\u2028\x85", "below\u2028\x85"}


def test_who_cannot_be_asked_is_refused(data, llama, seeing, tokenizer, inputs):
    with pytest.raises(ValueError, match="LlamaForCausalLM is a text model and reads no images"):
        HeldOutImages(None, 4).run(llama, tokenizer, dataclasses.replace(inputs, data=data))
    with pytest.raises(ValueError, match="held-out images need data of images"):
        HeldOutImages(None, 4).run(seeing, tokenizer, inputs)
    with pytest.raises(ValueError, match="max_items=0 must be at least 1"):
        HeldOutImages(0, 4)


def test_the_config_names_the_fields_of_the_benchmark():
    keys = yaml.safe_load((ROOT / "conf/benchmark/digits.yaml").read_text())
    for name in ("_target_", "title", "group", "note", "models", "data"):
        keys.pop(name)
    assert set(keys) == {field.name for field in dataclasses.fields(HeldOutImages)}
