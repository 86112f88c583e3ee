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
        ahead.done(groups[0])  # what is left of it is not fetched any more
        assert fetched.wait(8) == [*first, (100, 10), (600, 10), (110, 10), (610, 10)]
    assert len(fetched.ranges) == 8


def test_groups_larger_than_the_room_do_not_put_it_behind(fetched, groups):
    large = [[replace(one, num_bytes=200, start=one.start + 30) for one in groups[0]] for _ in range(2)]
    large[1] = [replace(one, start=one.start + 300) for one in large[1]]
    with ReadAhead([*large, *groups]) as ahead:
        fetched.wait(4)  # all that there is room for
        ahead.done(large[0])
        fetched.wait(8)
        ahead.done(large[1])
        assert fetched.wait(12)[-4:] == [(0, 10), (500, 10), (10, 10), (510, 10)]


def test_what_it_did_not_fetch_gives_no_room(fetched, groups):
    with ReadAhead(groups) as ahead:
        fetched.wait(4)
        ahead.done([replace(groups[0][0], num_bytes=10**6)])
        ahead.done(groups[1])
        ahead.done(groups[0])
    assert len(fetched.ranges) == 4


def test_a_tensor_that_several_are_cut_from_is_fetched_once(fetched, groups):
    (one, two), (three, _) = groups
    again = [[one], [one, two], [three, one, three]]
    with ReadAhead(again) as ahead:
        fetched.wait(5)
        ahead.done(again[0])
        fetched.wait(8)
        ahead.done(again[1])
        assert fetched.wait(9)[-3:] == [(100, 10), (110, 10), (120, 5)]
    assert len(set(fetched.ranges)) == len(fetched.ranges)


def test_a_request_is_no_larger_than_the_smallest_window(fetched, groups, monkeypatch):
    monkeypatch.setattr(read_ahead, "_REQUEST_BYTES", 4)
    with ReadAhead([groups[0][:1]]):
        assert fetched.wait(8) == [(0, 4), (4, 4), (8, 2), (10, 4), (14, 4), (18, 2), (20, 4), (24, 1)]


def test_the_end_does_not_wait_for_the_rest(fetched, groups):
    with ReadAhead([[replace(one, start=50 * i) for one in groups[0]] for i in range(100)]):
        pass
    assert len(fetched.ranges) <= 5


def test_a_file_that_is_gone_is_left_to_the_reader(fetched, groups):
    gone = [[replace(one, file=Path("/nowhere/x")) for one in groups[0]]]
    with ReadAhead([*gone, groups[1]]) as ahead:
        ahead.done(gone[0])
        assert (100, 10) in fetched.wait(1)
