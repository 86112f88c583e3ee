"""What the benchmark compares and shows; not its numbers."""

import argparse
import json

import pytest

from tests.bench.train import Measured, table, ways


def arguments(**changes):
    return argparse.Namespace(**{"tricks": False, "llamafactory": None, "precision": "fp32", **changes})


@pytest.mark.parametrize("cuda", [False, True])
def test_ours_is_compiled_in_bf16_and_stands_beside_itself_uncompiled(cuda):
    found = {way.name: json.loads(way.launch) for way in ways(arguments(precision="bf16"), cuda)}
    assert found["ours"] == {"compile": True} and found["ours, not compiled"] == {"compile": False}
    assert {way.name: way.launch for way in ways(arguments(), cuda)}["ours"] == "{}"


def test_ours_is_as_it_chooses_itself_where_a_cpu_has_no_bf16_products():
    found = {way.name: way.launch for way in ways(arguments(precision="bf16"), cuda=False, multiplies=False)}
    assert found["ours"] == "{}" and "ours, not compiled" not in found


def test_the_table_has_the_utilisation_of_the_timed_steps():
    facts = {"flops_per_token": 3e6, "flops_per_token_6nd": 6e6, "peak_flops_per_s": 1e9}
    results = [
        Measured("ours", 512, 100.0, 50.0, 2**20, facts),
        Measured("Trainer, default", 512, 50.0, 25.0, 2**21, {}),
    ]
    floors = {512: {"tokens_per_s": 400.0, "rates": {"forward": 1.0}, "flops_per_token": {"forward": 2e6}}}
    head, ours, other, _ = table(results, floors, {}).splitlines()
    assert head.split()[-2:] == ["MFU", "6ND"]
    assert ours.split()[-2:] == ["30.0%", "60.0%"] and other.split()[-2:] == ["15.0%", "30.0%"]
    results[0].facts.clear()
    assert table(results, floors, {}).splitlines()[1].split()[-2:] == ["25%", "1"]
