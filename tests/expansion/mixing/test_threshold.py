"""The value from which a difference is kept, however it is found."""

import pytest
import torch
from safetensors.torch import save_file

from pipeline.expansion.mixing import threshold
from pipeline.models.files.tensor_file import read_header


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(threshold, "PART_ITEMS", 256)
    monkeypatch.setattr(threshold, "_SAMPLE_ITEMS", 32)


@pytest.fixture
def pair(tmp_path):
    """Two stored tensors whose difference is given."""

    def save(difference):
        save_file({"a": torch.zeros_like(difference), "b": difference}, tmp_path / "x.safetensors")
        stored = read_header(tmp_path / "x.safetensors")
        return stored["a"], stored["b"]

    return save


def by_sorting(difference, rank):
    magnitudes = difference.abs()
    smallest = magnitudes.sort(descending=True).values[rank - 1]
    num_equal = rank - int((magnitudes > smallest).sum())
    last = int((magnitudes == smallest).nonzero()[num_equal - 1])
    part = last // threshold.PART_ITEMS
    before = int((magnitudes[: part * threshold.PART_ITEMS] == smallest).sum())
    return threshold.Limit(smallest.item(), part, num_equal - before)


DRAWN = torch.randn(5000, generator=torch.Generator().manual_seed(0))
KINDS = {
    "normal": DRAWN,
    "coarse": (DRAWN * 4).round() / 4,
    "rows": DRAWN * torch.arange(5000).div(500, rounding_mode="floor"),
    "zeros": torch.where(DRAWN > 2, DRAWN, torch.zeros(5000)),
    "equal": torch.ones(5000),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 2, 250, 1000, 4000, 4999, 5000])
def test_it_is_what_a_sort_finds(pair, kind, rank):
    assert threshold.smallest_kept(*pair(KINDS[kind]), rank) == by_sorting(KINDS[kind], rank)
    assert threshold._by_bits(*pair(KINDS[kind]), rank) == by_sorting(KINDS[kind], rank)


def test_a_sample_unlike_the_whole_is_not_believed(pair):
    """Every sampled value is small, so that the rank is not between the bounds that the sample gave."""
    difference = DRAWN.abs() + 10
    for first in range(0, 5000, 256):
        difference[first : first + 32] = torch.linspace(0.1, 0.2, 32)[: 5000 - first]
    base, other = pair(difference)
    assert threshold._between(base, other, 1000, *threshold._bounds(base, other, 1000)) is None
    assert threshold.smallest_kept(base, other, 1000) == by_sorting(difference, 1000)


def test_no_more_is_held_than_a_share_of_the_values(pair):
    base, other = pair(KINDS["equal"])
    assert threshold._between(base, other, 1000, *threshold._bounds(base, other, 1000)) is None


def test_what_is_mostly_no_number_is_refused(pair):
    base, other = pair(torch.where(DRAWN > 1, DRAWN, torch.tensor(torch.nan)))
    with pytest.raises(ValueError, match=r"difference of a between .*x.safetensors .*no numbers"):
        threshold.smallest_kept(base, other, 1000)


@pytest.mark.parametrize("num_equal", [1, 30, 40])
def test_a_sample_whose_bound_is_no_number(pair, num_equal):
    """Almost as many values are no numbers, which count as the largest, as are kept."""
    difference = torch.ones(5000)
    difference[torch.randperm(5000, generator=torch.Generator().manual_seed(1))[:989]] = torch.nan
    base, other = pair(difference)
    found = threshold.smallest_kept(base, other, 989 + num_equal)
    assert found == threshold._by_bits(base, other, 989 + num_equal)
    kept = int((difference[: found.part * 256] == 1).sum()) + found.num_equal
    assert (found.smallest, kept) == (1.0, num_equal)
