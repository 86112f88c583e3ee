"""The order of blocks: the paper's positions, uneven groups, both ends, explicit places, and what cannot be met."""

import pytest

from pipeline.expansion.layout import Between, Layout, at_end, explicit, interleaved


def new_positions(num_blocks, num_groups, per_group):
    return [i for i, slot in enumerate(interleaved(num_blocks, num_groups, per_group)) if slot.new]


def sources(stack):
    return " ".join(f"{slot.source}{'n' if slot.new else ''}" for slot in stack)


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
    assert sources(stack) == "0 1 2 3 2n 3n 4 5 6 7 6n 7n"
    assert [s.group for s in stack if s.new] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("top", "0 1 2 3 2n 3n 4 5 6 7 6n 7n"),
        ("bottom", "0 1 2 3 0n 1n 4 5 6 7 4n 5n"),
        ("last", "0 1 2 3 3n 3n 4 5 6 7 7n 7n"),
    ],
)
def test_origin_chooses_what_is_copied(origin, expected):
    assert sources(interleaved(8, 2, 2, origin)) == expected


def test_uneven_groups_are_as_equal_as_possible_and_the_longer_ones_come_first():
    assert sources(interleaved(7, 3, 1, strict=False)) == "0 1 2 2n 3 4 4n 5 6 6n"
    for num_blocks in range(1, 40):
        for num_groups in range(1, num_blocks + 1):
            stack = interleaved(num_blocks, num_groups, 1, strict=False)
            assert [s.source for s in stack if not s.new] == list(range(num_blocks))
            ends = [s.source for s in stack if s.new]
            sizes = [end - start for start, end in zip([-1, *ends], ends, strict=False)]
            assert len(ends) == num_groups and ends[-1] == num_blocks - 1 and max(sizes) - min(sizes) <= 1


def test_uneven_groups_equal_strict_ones_where_the_depth_divides():
    assert interleaved(30, 6, 2, strict=False) == interleaved(30, 6, 2)


def test_ends():
    assert sources(at_end(4, 2, "prefix")) == "0n 1n 0 1 2 3"
    assert sources(at_end(4, 2, "suffix")) == "0 1 2 3 2n 3n"
    assert sources(at_end(4, 2, "prefix", "last")) == "0n 0n 0 1 2 3"
    assert sources(at_end(4, 6, "suffix", "last")) == "0 1 2 3 3n 3n 3n 3n 3n 3n"
    assert sources(Layout(num_groups=2, per_group=1, position="suffix").slots(4)) == "0 1 2 3 2n 3n"


def test_explicit_places():
    assert sources(explicit(4, [[2, 1], [0, 1]])) == "0 0n 1 2 2n 3"
    assert sources(explicit(4, [[-1, 2], [3, 3]])) == "0n 1n 0 1 2 3 1n 2n 3n"
    assert sources(explicit(4, [[-1, 2], [1, 3]], "last")) == "0n 0n 0 1 1n 1n 1n 2 3"
    assert [s.group for s in explicit(4, [[0, 1], [3, 1]]) if s.new] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_groups": 31, "strict": False}, "num_groups=31 is more than the model's 30 blocks, .* use at most 30"),
        ({"num_groups": 7}, "num_groups=7 does not divide the model's 30 blocks; use one of 1, 2, 3, 5, 6, 10, 15, 30"),
        ({"num_groups": 7}, "expand.strict=false for uneven groups"),
        ({"num_groups": 6, "per_group": 0}, "per_group=0 must be at least 1"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"num_groups": -1}, "num_groups=-1"),
        ({"num_groups": 6, "per_group": 6}, "per_group=6 is more than the 5 blocks of a group"),
        ({"position": "prefix", "num_groups": 31}, "a prefix of 31 blocks needs as many to copy"),
        ({"position": "middle"}, "position='middle' is not known"),
        ({"origin": "best"}, "origin='best' is not known"),
        ({"position": "explicit"}, "needs expand.positions"),
        ({"positions": [[1, 1]]}, "read only with position=explicit"),
        ({"position": "explicit", "positions": [[30, 1]]}, "from -1 .below the first. to 29"),
        ({"position": "explicit", "positions": [[3, 1], [3, 1]]}, "named once"),
        ({"position": "explicit", "positions": [[3, 0]]}, "the count at least 1"),
        ({"position": "explicit", "positions": [3]}, r"each entry is \[after, count\]"),
        ({"position": "explicit", "positions": [[0, 2]]}, "a group of 1 ends"),
    ],
)
def test_refusals_say_what_to_change(settings, message):
    with pytest.raises(ValueError, match=message):
        Layout(**settings).slots(30)


def test_the_top_half_of_32_blocks_is_that_of_lesa_and_opt_deus():
    stack = Layout(position="top_half", num_groups=None).slots(32)
    assert [position for position, slot in enumerate(stack) if slot.new] == list(range(16, 47, 2))
    assert [slot.source for slot in stack if slot.new] == list(range(15, 31)) and len(stack) == 48


def test_fewer_places_in_the_top_half_are_spread_from_the_top():
    fewer = [slot.source for slot in Layout(position="top_half", num_groups=4).slots(32) if slot.new]
    assert fewer == [18, 22, 26, 30]
    with pytest.raises(ValueError, match="top_half has 2 gaps in a model of 4 blocks; use num_groups from 1 to 2"):
        Layout(position="top_half", num_groups=3).slots(4)


def test_between_two_blocks_there_is_one_new_block():
    assert sources(Between(num_groups=2).slots(4)) == "0 1 1n 2 3n 3"
    assert Between(num_groups=2).neighbours(4) == {2: (1, 2), 4: (2, 3)}
    assert Between(position="top_half", num_groups=None).neighbours(5) == {2: (1, 2), 4: (2, 3), 6: (3, 4)}
    for layout in ({"position": "suffix"}, {"num_groups": 4}, {"num_groups": 2, "per_group": 2}):
        with pytest.raises(ValueError, match=r"Between makes one block between two of the model's; position \d of the"):
            Between(**layout).neighbours(4)
