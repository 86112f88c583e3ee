"""What is refused of the section `track` before any work, what it asks for, and what it is told to cost."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from pipeline.models.architecture.shape import shape_of
from pipeline.training.cost.forecast import forecast, tell
from pipeline.training.methods.strategy import NewBlocks
from pipeline.training.tracking.track import FOR_THE_GRAPH, Track, track_params, tracked_inputs
from tests.training.cost.test_flops import LLAMA, NEW
from tests.training.cost.test_forecast import LAUNCH, manifest
from tests.training.knobs import TRACK
from tests.training.test_fit import settings

SHAPE = shape_of(LLAMA).with_new(set(NEW))
CONF = Path(__file__).parents[3] / "conf" / "training" / "base.yaml"


def told(every=2, num_steps=6, earlier=(), **changes):
    params = {**vars(settings(num_steps=num_steps)), "track": {**TRACK, "every": every, **changes}}
    return tell(forecast(SHAPE, NewBlocks(), params, LAUNCH), params, lambda: earlier)


def test_the_keys_of_the_config_are_the_fields():
    section = yaml.safe_load(CONF.read_text())["track"]
    assert set(section) | {"samples"} == {field.name for field in dataclasses.fields(Track)} | set(FOR_THE_GRAPH)
    assert section["every"] is None  # off wherever nobody asks for it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, r"track\.every=0 must be at least 1; null tracks nothing"),
        ({"every": -2}, r"track\.every=-2 must be at least 1"),
        ({"every": 2.5}, r"track\.every=2\.5 must be a whole number"),
        ({"drift_tokens": 0}, r"track\.drift_tokens=0 must be at least 1"),
        ({"document_tokens": 1}, r"track\.document_tokens=1 must be at least 2"),
        ({"measures": ["domain", "kl"]}, r"track\.measures has 'kl', which is not known; use domain, drift"),
        ({"measures": []}, r"track\.measures=\[\] must name domain, drift"),
        ({"measures": ["drift", "drift"]}, "each once"),
        (
            {"measures": ["domain"], "keep_best": "drift"},
            r"keep_best names 'drift', which is not tracked; use one of dom",
        ),
        ({"keep_best": "val_loss"}, "keep_best names 'val_loss', which is not tracked; use one of domain, drift"),
        ({"measures": ["domain"], "stop_if": {"drift": 0.2}}, "stop_if names 'drift', which is not tracked"),
        ({"stop_if": {"drift": 0}}, r"track\.stop_if=\{'drift': 0\} must hold numbers of more than 0"),
        ({"stop_if": {"drift": "much"}}, r"track\.stop_if=.* must be a mapping, each value a number"),
        ({"often": 3}, r"track\.often is not a key; it has .*every"),
    ],
)
def test_what_cannot_be_tracked(changes, message):
    with pytest.raises(ValueError, match=message):
        Track.of({"track": {**TRACK, **changes}})


def test_without_steps_nothing_is_tracked_whatever_else_is_said():
    section = {**TRACK, "every": None, "data": None, "samples": {"num_free": 1}}
    assert track_params({"track": section}) is None and tracked_inputs({"track": section, "data": {}}) == {}
    assert track_params({"track": {**section, "domain_tokens": 9}}) is None  # so that it is no other run
    assert track_params({"track": {**section, "every": 2, "stop_if": {"domain": None, "drift": 0.2}}})["stop_if"] == {
        "drift": 0.2
    }
    for asked in ({"keep_best": "drift"}, {"stop_if": {"drift": 0.2}}):
        with pytest.raises(ValueError, match=rf"track\.{next(iter(asked))}=.* needs measures; set track\.every"):
            track_params({"track": {**section, **asked}})


def test_what_is_read_for_it():
    track = {**TRACK, "data": None, "samples": {"num_free": 1}}
    section = {"track": track, "data": {"own": 1}}
    assert tracked_inputs(section) == {"domain": {"own": 1}, "samples": {"num_free": 1}, "base": {}}
    assert tracked_inputs({**section, "track": {**track, "data": {"other": 2}}})["domain"] == {"other": 2}
    assert tracked_inputs({**section, "track": {**track, "measures": ["domain"]}}) == {"domain": {"own": 1}}
    assert set(tracked_inputs({**section, "track": {**track, "samples": None}})) == {"domain"}
    assert "data" not in track_params(section) and "samples" not in track_params(section)


@pytest.mark.parametrize(("every", "steps"), [(2, [0, 2, 4, 6]), (4, [0, 4, 6]), (99, [0, 6]), (6, [0, 6])])
def test_the_steps_that_are_measured(every, steps):
    assert Track(**{**TRACK, "every": every}).steps(6) == steps


def test_its_cost_is_told(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    line = told(keep_best="domain", earlier=[manifest(rate=2e6)])[-1]
    assert line.startswith("tracking    domain, drift every 2 steps, ") and " x 4 and once of the base" in line
    assert "% of training, about " in line and "on the disk for each step kept" in line
    logits = 4 * SHAPE.vocab * TRACK["drift_tokens"] / 2**10
    assert f"{logits:.3g} KiB of memory for the base's logits" in line
    assert "logits" not in told(measures=["domain"])[-1] and "disk" not in told()[-1]
    untracked = {**vars(settings()), "track": None}
    plain = tell(forecast(SHAPE, NewBlocks(), untracked, LAUNCH), untracked, lambda: ())
    assert len(plain) == 4 and plain == told()[:4]


def test_the_told_operations_are_those_of_forward_passes():
    """Of 256 tokens in heads of 48 and of 96 in one: what matrices, head and attention do, by hand."""
    from pipeline.training.cost.flops import Trains, cost_of
    from pipeline.training.cost.tracking import tracking_cost

    cost = cost_of(SHAPE, Trains("new_blocks"))
    found = tracking_cost(Track(**TRACK), cost, 64, 6, 10, SHAPE.vocab)
    (window,) = cost.windows
    matrices = (256 + 64 + 32) * (cost.forward + cost.head_forward)
    pairs = 256 / 48 * (48 * 49 / 2) + 96 / 64 * (64 * 65 / 2)  # a row has 64
    assert found.pass_flops == pytest.approx(matrices + window.forward * pairs) and found.flops == 5 * found.pass_flops
