"""The order of blocks: the paper's positions, and requests that cannot be met."""

import pytest

from pipeline.expansion.layout import interleaved


def new_positions(num_blocks, num_groups, per_group):
    return [i for i, slot in enumerate(interleaved(num_blocks, num_groups, per_group)) if slot.new]


def test_papers_positions():
    assert new_positions(32, 8, 1) == [4, 9, 14, 19, 24, 29, 34, 39]


@pytest.mark.parametrize(("num_blocks", "num_groups"), [(36, 9), (40, 10), (64, 16), (80, 16), (30, 6)])
def test_one_per_group_equals_the_authors_rule(num_blocks, num_groups):
    """Their script: after source block i with (i + 1) % split == 0 comes a copy of block i."""
    split = num_blocks // num_groups
    expected = []
    for i in range(num_blocks):
        expected.append((i, False))
        if (i + 1) % split == 0:
            expected.append((i, True))
    assert [(s.source, s.new) for s in interleaved(num_blocks, num_groups, 1)] == expected


def test_two_per_group_copies_the_top_two_in_order():
    stack = interleaved(8, 2, 2)
    assert [(s.source, s.new) for s in stack] == [
        (0, False), (1, False), (2, False), (3, False), (2, True), (3, True),
        (4, False), (5, False), (6, False), (7, False), (6, True), (7, True),
    ]  # fmt: skip
    assert [s.group for s in stack if s.new] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("num_groups", "per_group", "message"),
    [
        (7, 1, "num_groups=7 does not divide the model's 30 blocks; use one of 1, 2, 3, 5, 6, 10, 15, 30"),
        (6, 0, "per_group=0 must be at least 1"),
        (0, 1, "num_groups=0"),
        (-1, 1, "num_groups=-1"),
        (6, 6, "per_group=6 is more than the 5 blocks of a group"),
    ],
)
def test_refusals_say_what_to_change(num_groups, per_group, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        interleaved(30, num_groups, per_group)
