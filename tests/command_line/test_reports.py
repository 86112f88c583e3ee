"""Which variant of a run the others are judged against."""

import pytest

from pipeline.command_line.reports import _reference
from pipeline.lineage.report import in_order
from pipeline.lineage.variant import Variant


def reference(*overrides):
    return _reference(in_order(Variant(",".join(sorted(one)) or "default", overrides=tuple(one)) for one in overrides))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([["expand.init=average"], ["expand.init=copy"], ["expand.init=zero_writers"]], "expand.init=zero_writers"),
        ([["expand.init=average"], ["expand.init=copy"]], None),
        ([["expand.init=average"], []], "default"),
        ([["expand.num_groups=3"], ["expand.num_groups=6"]], "expand.num_groups=6"),
        (
            [["pretrain.lr=1e-3", "expand.per_group=2"], ["pretrain.lr=2e-3", "expand.per_group=2"]],
            "expand.per_group=2,pretrain.lr=1e-3",
        ),
        ([["expand=block"], ["expand=none"]], "expand=block"),
        ([["experiment=lora"], ["experiment=full_finetuning"]], None),
        (
            [
                ["experiment=paper/position", "expand.init=copy"],
                ["experiment=paper/position", "expand.init=zero_writers"],
            ],
            "expand.init=zero_writers,experiment=paper/position",
        ),
        ([["+nothing.here=1"], ["+nothing.here=2"]], None),
        ([["expand.init=average"]], None),
    ],
)
def test_the_reference_is_what_is_configured(overrides, expected):
    assert reference(*overrides) == expected
