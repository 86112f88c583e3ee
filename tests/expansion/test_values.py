"""Stored tensors a piece at a time: columns of a matrix, and what is drawn beside them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.expansion import values
from pipeline.expansion.upcycling.dense import Changes
from pipeline.expansion.upcycling.experts import Cut
from pipeline.expansion.values import columns_of, pieces_of
from pipeline.models.files.tensor_file import read_header


def stored(folder, dtype=torch.float32, shape=(40, 24)):
    torch.manual_seed(0)
    matrix = torch.randn(shape).to(dtype)
    save_file({"before": torch.zeros(3), "w": matrix}, folder / "w.safetensors")
    return matrix.float(), read_header(folder / "w.safetensors")["w"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("first", "count"), [(0, 24), (0, 5), (7, 6), (19, 5), (3, 1), (4, 0)])
@pytest.mark.parametrize("size", [1, 10, 24, 100, 2**20])
def test_columns_are_those_of_the_matrix_in_the_pieces_of_the_whole(tmp_path, monkeypatch, dtype, first, count, size):
    """A piece may begin and end within a row."""
    monkeypatch.setattr(values, "PIECE_ITEMS", size)
    matrix, place = stored(tmp_path, dtype)
    chosen = torch.zeros(matrix.shape, dtype=torch.bool)
    chosen[:, first : first + count] = True
    whole = zip(pieces_of(place), chosen.flatten().split(size), strict=True)
    expected = [piece[mask] for piece, mask in whole if mask.any()]
    found = list(columns_of(place, first, count))
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert torch.equal(torch.cat([*found, torch.zeros(0)]), matrix[:, first : first + count].flatten())


def read_bytes():
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count what is read")
def test_what_is_not_wanted_is_not_read(tmp_path):
    matrix, place = stored(tmp_path, shape=(64, 4096))
    before = read_bytes()
    found = torch.cat(list(columns_of(place, 1000, 16)))
    assert read_bytes() - before < place.num_bytes / 20
    assert torch.equal(found, matrix[:, 1000:1016].flatten())


def test_a_file_that_ends_early_is_said(tmp_path):
    _, place = stored(tmp_path)
    place.file.write_bytes(place.file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="ended early while it was read"):
        list(columns_of(place, 20, 4))


def test_changes_of_columns_are_drawn_as_the_definition_says(tmp_path):
    """Half of the units anew, with mean and deviation of what they were; then noise, of the part's deviation."""
    matrix, place = stored(tmp_path)
    part = matrix[:, 6:18]
    (whole,) = Cut(1, 6, 12, 2.0, Changes(0.5, 0.1, 3), "block 0 expert 1")("name", [place])
    (redrawn,) = Cut(1, 6, 12, 1.0, Changes(0.5, 0.0, 3), "block 0 expert 1")("name", [place])
    anew = (redrawn.view_as(part) != part).any(0)
    assert anew.sum() == 6 and torch.equal(redrawn.view_as(part)[:, ~anew], part[:, ~anew])
    generator = values.generator_of("name", 3)
    drawn = [torch.randn(part.numel(), generator=generator).view_as(part) for _ in range(2)]
    old = part[:, anew].double()
    new = drawn[0] * old.std(correction=0) + old.mean()
    expected = torch.where(anew, new, part) + drawn[1] * 0.1 * part.double().std(correction=0)
    torch.testing.assert_close(whole.view_as(part), (2 * expected).float(), rtol=1e-5, atol=1e-6)
