from __future__ import annotations

import pytest

from pipeline.reporting.tables.labels import swept_number, variant_labels


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["default"], ["default"]),
        (["default", "expand=none"], ["default", "expand=none"]),
        (["a.lr=1,b.n=2", "a.lr=1,b.n=3"], ["n=2", "n=3"]),
        (["default", "experiment=lora"], ["default", "lora"]),
        (["a.lr=1", "b.lr=1"], ["a.lr=1", "b.lr=1"]),  # the last part alone would not tell them apart
        (["strategy@pretrain.strategy=lora", "default"], ["strategy=lora", "default"]),
        (["x.positions=[1, 2]", "x.positions=[3, 4]"], ["positions=[1, 2]", "positions=[3, 4]"]),
        (["x=" + "long" * 20, "x=" + "long" * 21], ["A", "B"]),
    ],
)
def test_labels_are_short_and_differ(names, labels):
    assert list(variant_labels(names).values()) == labels


def test_only_one_numeric_override_makes_a_sweep():
    assert swept_number(["e.n=1,a=2", "e.n=2,a=2", "e.n=1e1,a=2"]) == ("e.n", [1.0, 2.0, 10.0])
    assert swept_number(["e.n=1", "e.n=2", "default"]) is None
    assert swept_number(["e.n=1", "e.n=two"]) is None
    assert swept_number(["e.n=1,a=1", "e.n=2,a=2"]) is None
