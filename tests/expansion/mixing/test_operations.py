"""The definitions of the mixes, on tensors small enough for a pencil, and in pieces."""

import math

import pytest
import torch
from safetensors.torch import save_file

from pipeline.expansion.mixing.operations import Differences, Drop, Linear, Slerp, Trim
from pipeline.models.files.tensor_file import read_header


@pytest.fixture
def stored(tmp_path):
    """Save vectors, and hand back where they lie."""
    count = iter(range(1000))

    def save(*vectors, dtype=torch.float32):
        file = tmp_path / f"{next(count)}.safetensors"
        save_file({f"t{i}": torch.as_tensor(v, dtype=torch.float64).to(dtype) for i, v in enumerate(vectors)}, file)
        return [read_header(file)[f"t{i}"] for i in range(len(vectors))]

    return save


def made(operation, inputs, name="x"):
    return torch.cat([piece.flatten().clone() for piece in operation(name, inputs)])


def trimmed(density, base, other):
    return made(Differences((1.0,), (Trim(density),), elect=False, normalise=False, scale=1.0), [base, other])


def test_linear(stored):
    inputs = stored([1.0, 2.0], [3.0, 6.0], [-5.0, 0.0])
    assert made(Linear((0.75, 0.25), True), inputs[:2]).tolist() == [1.5, 3.0]
    assert made(Linear((1.0, 2.0, 1.0), True), inputs).tolist() == [0.5, 3.5]
    assert made(Linear((1.0, 2.0, 1.0), False), inputs).tolist() == [2.0, 14.0]


def test_slerp_of_orthogonal_vectors_is_their_arc(stored):
    """A right angle: sin((1-t) pi/2) x + sin(t pi/2) y, with the lengths that the vectors have."""
    mixed = made(Slerp(1 / 3), stored([2.0, 0.0], [0.0, 4.0]))
    assert mixed.tolist() == pytest.approx([2 * math.sin(math.pi / 3), 4 * math.sin(math.pi / 6)], abs=1e-6)


def test_slerp_of_any_angle(stored):
    x, y, t = [1.0, 2.0, -1.0], [0.5, -1.0, 3.0], 0.3
    angle = math.acos(sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y))
    wanted = [
        (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle) for a, b in zip(x, y, strict=True)
    ]
    assert made(Slerp(t), stored(x, y)).tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "linear"),
    [
        ([1.0, 0.0], [2.0, 0.02], True),
        ([1.0, 0.0], [-1.0, 0.0], True),
        ([1.0, 0.0], [1.0, 0.033], False),
        ([0.0, 0.0], [1.0, 2.0], False),
        ([1e-9, 0.0], [1.0, 0.0], False),
    ],
)
def test_slerp_is_linear_for_vectors_of_one_direction(stored, x, y, linear):
    """|cos| above 0.9995. A vector of a norm below 1e-8 is not divided by it: it is at a right angle to all."""
    mixed = made(Slerp(0.25), stored(x, y))
    line = torch.tensor(x) * 0.75 + torch.tensor(y) * 0.25
    assert torch.allclose(mixed, line, rtol=1e-6, atol=0) == linear
    if sum(map(abs, x)) < 1e-8:
        assert torch.allclose(mixed, torch.tensor(y) * math.sin(math.pi / 8), rtol=1e-6)


def test_task_arithmetic_adds_weighted_differences(stored):
    inputs = stored([1.0, 1.0], [2.0, 0.0], [4.0, 1.0])
    assert made(Differences((0.5, 2.0), (None, None), False, False, 1.0), inputs).tolist() == [7.5, 0.5]
    assert made(Differences((0.5, 2.0), (None, None), False, False, 0.5), inputs).tolist() == [4.25, 0.75]
    assert made(Differences((0.5, 1.5), (None, None), False, True, 1.0), inputs).tolist() == [3.5, 0.75]


def test_ties_trims_elects_and_averages_what_agrees(stored):
    """Two differences of five values, three kept of each (density 0.6), then by sign of the sum, ties counting as +.

    d1 = 4 -3 1 2 0 -> 4 -3 . 2 .   d2 = -6 -1 3 -2 0.5 -> -6 . 3 -2 .
    sums: -2 -> -, -3 -> -, 3 -> +, 0 -> +, 0 -> +; what agrees: -6; -3; 3; 2; nothing.
    """
    inputs = stored([0.0] * 5, [4.0, -3.0, 1.0, 2.0, 0.0], [-6.0, -1.0, 3.0, -2.0, 0.5])
    thin = (Trim(0.6), Trim(0.6))
    assert made(Differences((1.0, 1.0), thin, True, True, 1.0), inputs).tolist() == [-6, -3, 3, 2, 0]
    assert made(Differences((1.0, 1.0), thin, True, True, 0.5), inputs).tolist() == [-3, -1.5, 1.5, 1, 0]
    # By weights 2 and 1: sums 2 -6 3 2; 8 -> divided by 2; the same by the weights that agree.
    assert made(Differences((2.0, 1.0), thin, True, True, 1.0), inputs).tolist() == [4, -3, 3, 2, 0]
    assert made(Differences((2.0, 1.0), thin, True, False, 1.0), inputs).tolist() == [8, -6, 3, 4, 0]


def test_the_mean_of_what_agrees(stored):
    inputs = stored([1.0], [3.0], [7.0], [0.0])
    assert made(Differences((1.0, 1.0, 1.0), (None,) * 3, True, True, 1.0), inputs).tolist() == [5.0]


@pytest.mark.parametrize(("density", "kept"), [(0.2, 1), (0.39, 1), (0.4, 2), (0.01, 1), (0.99, 4)])
def test_trimming_keeps_a_whole_number_of_values_and_one_at_least(stored, density, kept):
    values = [1.0, -5.0, 3.0, -2.0, 4.0]
    base, other = stored([0.0] * 5, values)
    largest = sorted(values, key=abs, reverse=True)[:kept]
    assert trimmed(density, base, other).tolist() == [value if value in largest else 0 for value in values]


def test_of_equal_values_the_first_are_kept(stored):
    base, other = stored([0.0] * 6, [2.0, -1.0, 1.0, 3.0, 1.0, -1.0])
    assert trimmed(0.7, base, other).tolist() == [2, -1, 1, 3, 0, 0]


def test_trimming_equals_a_sort_in_pieces_and_in_bf16(stored, monkeypatch):
    monkeypatch.setattr("pipeline.expansion.values.PIECE_ITEMS", 100)
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(1037, generator=generator) for _ in range(2)]
    base, other = stored(*vectors, dtype=torch.bfloat16)
    difference = vectors[1].bfloat16().float() - vectors[0].bfloat16().float()
    order = difference.abs().sort(descending=True, stable=True).indices
    wanted = torch.zeros(1037)
    wanted[order[: int(0.3 * 1037)]] = difference[order[: int(0.3 * 1037)]]
    assert torch.equal(trimmed(0.3, base, other), vectors[0].bfloat16().float() + wanted)


@pytest.mark.parametrize("operation", ["linear", "slerp", "task", "ties", "dare"])
def test_pieces_change_no_more_than_rounding(stored, monkeypatch, operation):
    generator = torch.Generator().manual_seed(1)
    inputs = stored(*(torch.randn(900, generator=generator) for _ in range(2)))
    mix = {
        "linear": Linear((0.3, 0.7), True),
        "slerp": Slerp(0.3),
        "task": Differences((0.5,), (None,), False, False, 1.0),
        "ties": Differences((0.5,), (Trim(0.3),), True, True, 1.0),
        "dare": Differences((0.5,), (Drop(0.3, "l1", 0, "a"),), False, False, 1.0),
    }[operation]
    at_once = made(mix, inputs)
    monkeypatch.setattr("pipeline.expansion.values.PIECE_ITEMS", 64)
    largest_term = 10 if operation == "dare" else 1  # what is kept is made larger, and then cancels
    torch.testing.assert_close(made(mix, inputs), at_once, rtol=1e-6, atol=1e-7 * largest_term)


@pytest.mark.parametrize("weight", [-0.3, 1.0])
def test_one_difference_is_weighted_and_divided_as_several_are(stored, weight):
    """A second model that is the base's equal has no part in the election, and weight 0 none in the mean."""
    generator = torch.Generator().manual_seed(3)
    base, other = stored(*(torch.randn(500, generator=generator) for _ in range(2)))
    for elect, normalise in ((True, True), (True, False), (False, True), (False, False)):
        one = made(Differences((weight,), (Trim(0.4),), elect, normalise, 0.7), [base, other])
        two = made(Differences((weight, 0.0), (Trim(0.4), None), elect, normalise, 0.7), [base, other, base])
        assert torch.equal(one, two)


def test_of_more_equal_values_than_are_kept_the_first_are_in_pieces_too(stored, monkeypatch):
    monkeypatch.setattr("pipeline.expansion.values.PIECE_ITEMS", 4)
    values = [1.0, 0.0, -1.0, 5.0, 1.0, 1.0, -1.0, 0.5, 1.0, 9.0]
    base, other = stored([0.0] * 10, values)
    assert trimmed(0.6, base, other).tolist() == [1, 0, -1, 5, 1, 1, 0, 0, 0, 9]
    assert trimmed(1.0, base, other).tolist() == values


def test_a_mask_of_all_keeps_all(stored):
    inputs = stored([1.0, -2.0, 0.5], [2.0, 3.0, -1.0])
    assert dare(inputs, "density", density=1.0).tolist() == [2.0, 3.0, -1.0]


def dare(inputs, rescale, seed=0, role="a", name="x", density=0.4):
    return made(Differences((1.0,), (Drop(density, rescale, seed, role),), False, False, 1.0), inputs, name)


def test_dare_keeps_a_share_and_makes_up_for_it(stored):
    generator = torch.Generator().manual_seed(2)
    difference = torch.randn(20_000, generator=generator)
    inputs = stored(torch.zeros(20_000), difference)
    kept = {rescale: dare(inputs, rescale) for rescale in ("none", "density", "l1")}
    mask = kept["none"] != 0
    assert abs(mask.float().mean().item() - 0.4) < 0.015
    assert torch.equal(kept["none"], difference * mask)
    assert torch.equal(kept["density"], difference * mask / 0.4)
    assert kept["l1"].abs().sum().item() == pytest.approx(difference.abs().sum().item(), rel=1e-5)
    assert not torch.equal(kept["l1"], kept["density"])


def test_masks_depend_on_seed_role_and_name_alone(stored):
    one, other = (stored(torch.zeros(500), torch.full((500,), value)) for value in (1.0, 3.0))
    first = dare(one, "none") != 0
    assert torch.equal(first, dare(other, "none") != 0)
    for changed in ({"seed": 1}, {"role": "b"}, {"name": "y"}):
        assert not torch.equal(first, dare(one, "none", **changed) != 0)


def test_a_difference_of_nothing_stays_nothing(stored):
    inputs = stored([1.0, -2.0], [1.0, -2.0])
    for rescale in ("none", "density", "l1"):
        assert dare(inputs, rescale).tolist() == [1.0, -2.0]
    assert trimmed(0.5, *inputs).tolist() == [1.0, -2.0]
