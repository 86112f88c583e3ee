"""What is computed with is fetched before, in its order and no further than there is room for."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.models.files import read_ahead
from pipeline.models.files.read_ahead import ReadAhead
from pipeline.models.files.tensor_file import Stored
from tests.children import PATIENCE_S

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")


class Fetched:
    """What the kernel is asked for, as (start, bytes), and waiting for so many of them."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._more = threading.Condition()

    def __call__(self, fd: int, start: int, size: int, advice: int) -> None:
        with self._more:
            self.ranges.append((start, size))
            self._more.notify()

    def wait(self, count: int) -> list[tuple[int, int]]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.ranges) >= count, PATIENCE_S), self.ranges
            return list(self.ranges)


@pytest.fixture
def fetched(monkeypatch):
    found = Fetched()
    monkeypatch.setattr(os, "posix_fadvise", found)
    monkeypatch.setattr(read_ahead, "_STEP_BYTES", 10)
    monkeypatch.setattr(read_ahead, "AHEAD_BYTES", 40)
    return found


@pytest.fixture
def groups(tmp_path):
    """Two tensors of two models each, of 25 bytes."""
    (tmp_path / "x").write_bytes(bytes(1000))
    one = Stored(tmp_path / "x", "U8", (25,), 0, 25)
    return [[one, replace(one, start=500)], [replace(one, start=100), replace(one, start=600)]]


def test_it_goes_side_by_side_and_stops_when_there_is_no_room(fetched, groups):
    first = [(0, 10), (500, 10), (10, 10), (510, 10)]
    with ReadAhead(groups) as ahead:
        assert fetched.wait(4) == first
        ahead.done(groups[0])
        assert fetched.wait(8) == [*first, (20, 5), (520, 5), (100, 10), (600, 10)]
    assert len(fetched.ranges) <= 10  # of the second group nothing more than there was room for


def test_the_end_does_not_wait_for_the_rest(fetched, groups):
    with ReadAhead(groups * 100):
        pass
    assert len(fetched.ranges) <= 4


def test_a_file_that_is_gone_is_left_to_the_reader(fetched, groups):
    gone = [[replace(one, file=Path("/nowhere/x")) for one in groups[0]]]
    with ReadAhead(gone) as ahead:
        ahead.done(gone[0])
