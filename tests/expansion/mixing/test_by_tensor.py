"""Numbers by depth and name: mergekit's rules, by hand."""

import pytest

from pipeline.expansion.mixing.by_tensor import check_filters_used, check_setting, place_of, value_at

BY_NAME = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.25}, {"value": 0.5}]


@pytest.mark.parametrize(
    ("setting", "name", "place", "value"),
    [
        (0.3, "anything", 0.7, 0.3),
        ([0, 0.5, 0.3, 0.7, 1], "x", 0.0, 0.0),
        ([0, 0.5, 0.3, 0.7, 1], "x", 0.5, 0.3),
        ([0, 0.5, 0.3, 0.7, 1], "x", 0.625, 0.5),
        ([0, 0.5, 0.3, 0.7, 1], "x", 1.0, 1.0),
        ([0.4], "x", 0.9, 0.4),
        (BY_NAME, "model.layers.2.self_attn.q_proj.weight", 0.25, 0.25),
        (BY_NAME, "model.layers.2.mlp.up_proj.weight", 0.25, 0.25),
        (BY_NAME, "model.norm.weight", 0.25, 0.5),
        (
            [{"filter": "up", "value": 1}, {"filter": "mlp", "value": 2}, {"filter": "*", "value": 3}],
            "mlp.up",
            0.0,
            1.0,
        ),
    ],
)
def test_values(setting, name, place, value):
    check_setting(setting, "t")
    assert value_at(setting, name, place) == pytest.approx(value, abs=1e-12)


def test_places_in_the_depth():
    assert [place_of(block, 5) for block in (0, 2, 4)] == [0.0, 0.5, 1.0]
    assert place_of(None, 5) == 0.0 and place_of(0, 1) == 1.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("half", r"t='half' must be a number, a list of numbers over the depth"),
        (True, "must be a number"),
        (float("nan"), "must be a finite number from 0 to 1"),
        (1.5, "t=1.5 must be a finite number from 0 to 1"),
        ([], "must be a number, a list"),
        ([0, "a"], "t has 'a' in a list of numbers"),
        ([0, [0, 1]], "in a list of numbers"),
        ([{"filter": "mlp", "value": 0.5}], "leaves tensors without a value"),
        ([{"filter": "mlp"}, {"value": 1}], "each entry must be"),
        ([{"name": "mlp", "value": 0.5}, {"value": 1}], "each entry must be"),
        ([{"filter": 3, "value": 0.5}, {"value": 1}], "a filter is a part of tensors' names"),
        ([0.5, {"value": 1}], "each entry must be"),
        ([{"filter": "mlp", "value": [0, 7]}, {"value": 1}], "t=7 must be a finite number from 0 to 1"),
    ],
)
def test_what_is_no_setting_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        check_setting(setting, "t", 0.0, 1.0)


def test_a_misspelt_filter_is_refused():
    names = ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
    check_filters_used([{"filter": "self_attn", "value": 0}, {"value": 1}], "t", names)
    with pytest.raises(ValueError, match="t has the filter 'self_atn', which is part of no tensor's name"):
        check_filters_used([{"filter": "self_atn", "value": 0}, {"value": 1}], "t", names)
