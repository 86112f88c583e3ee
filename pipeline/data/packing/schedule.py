"""Shares of the tokens by source, over a run: constant, or straight between points of its progress.

Shapes: P points, S sources.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Shares = Mapping[str, float] | Sequence[Sequence[Any]] | None
"""Shares by source, or points [progress, shares by source]; only their ratio counts. None: from sources' weights."""
Replay = float | Sequence[Sequence[float]] | None
"""The share of general text, or points [progress, share]."""


@dataclass(frozen=True)
class Schedule:
    """points: progress in [0, 1], ascending; shares: one list of S shares, which sum to 1, for each point.

    Between two points shares are on a straight line; before the first and after the last they stay.
    """

    points: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def constant(self) -> bool:
        """Whether the shares never change, so that the length of the run does not matter."""
        return len(self.points) == 1

    def at(self, progress: float) -> list[float]:
        """The shares of all sources at a progress."""
        index = bisect_right(self.points, progress)
        if index in (0, len(self.points)):
            return list(self.shares[max(0, index - 1)])
        left, right = self.points[index - 1], self.points[index]
        part = (progress - left) / (right - left)
        return [low + (high - low) * part for low, high in zip(*self.shares[index - 1 : index + 1], strict=True)]

    def wanted(self, tokens: int, num_tokens: int | None) -> list[float]:
        """How many of the first `tokens` tokens of a run of `num_tokens` each source should have: the integral."""
        if self.constant or not num_tokens:
            return [share * tokens for share in self.shares[0]]
        progress = tokens / num_tokens
        index = bisect_right(self.points, progress)
        if not index:
            return [share * tokens for share in self.shares[0]]
        width, there, here = progress - self.points[index - 1], self.shares[index - 1], self.at(progress)
        sums = zip(self._sums[index - 1], there, here, strict=True)
        return [(done + (low + high) / 2 * width) * num_tokens for done, low, high in sums]

    @cached_property
    def _sums(self) -> list[list[float]]:
        """The integral of the shares up to each point, in progress."""
        sums = [[share * self.points[0] for share in self.shares[0]]]
        for index in range(1, len(self.points)):
            width = self.points[index] - self.points[index - 1]
            pairs = zip(sums[-1], self.shares[index - 1], self.shares[index], strict=True)
            sums.append([done + (low + high) / 2 * width for done, low, high in pairs])
        return sums


def schedule(
    names: Sequence[str], weighted: Sequence[float], shares: Shares, replay: Replay, general: Sequence[str]
) -> Schedule:
    """The schedule of sources `names`, of which `general` are replayed.

    weighted: weight times tokens of every source, which is its part where `shares` says nothing, and its part of the
    replay. shares: of the sources that are not general. replay: of the general ones together.
    Raises ValueError for an unknown or missing source, a share that is negative, or points out of order.
    """
    domain = [name for name in names if name not in set(general)]
    own = dict(zip(names, weighted, strict=True))
    by_domain = _points("shares", {name: own[name] for name in domain} if shares is None else shares)
    by_replay = _points("replay", 0.0 if replay is None else replay)
    for _, found in by_domain:
        _check_shares(found, domain)
    _check_replay(by_replay)
    points = sorted({point for point, _ in by_domain} | {point for point, _ in by_replay})
    rows = []
    for point in points:
        part = _between(by_replay, point)
        here = {name: _between([(p, _ratio(found)[name]) for p, found in by_domain], point) for name in domain}
        here = {name: share * (1 - part) if part else share for name, share in here.items()}
        here |= {name: share * part for name, share in _ratio({name: own[name] for name in general}).items()}
        rows.append(tuple(here[name] for name in names))
    return _simplest(points, rows)


def check_shares(shares: Shares, replay: Replay, sources: Sequence[str] | None = None) -> None:
    """Raise ValueError for what no data could be mixed by: negative shares, points out of order, other names than the
    data's `sources`, where these are known."""
    for _, found in () if shares is None else _points("shares", shares):
        named = list(found) if isinstance(found, Mapping) else []
        _check_shares(found, named if sources is None else sources)
    _check_replay(_points("replay", 0.0 if replay is None else replay))


def check_replay(replay: Replay, has_general_text: bool) -> None:
    """Raise ValueError for replay where the data has no general text."""
    if replay and not has_general_text:
        raise ValueError(
            f"replay={replay} asks for general text, but the data has none; add some to data.replay, e.g. "
            "+data/source@pretrain.data.replay.wikitext2=wikitext2_train"
        )


def check_whole(packing: str | None) -> None:
    """Raise ValueError for a way to pack rows that cuts documents, for data whose documents cannot be cut."""
    if packing not in (None, "first_fit"):
        raise ValueError(f"packing={packing} cuts a document where a row ends, and images are whole; use first_fit")


def _check_replay(points: Sequence[tuple[float, float]]) -> None:
    for _, share in points:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"replay: {share!r} must be a share of general text, at least 0 and less than 1")


def _points(key: str, value: Any) -> list[tuple[float, Any]]:
    """Points of progress and what stands there; one value is one point."""
    if not isinstance(value, Sequence):
        return [(0.0, value)]
    if any(not isinstance(entry, Sequence) or len(entry) != 2 for entry in value) or not value:
        raise ValueError(f"{key}={value} must be one value, or a list of points [progress, value]")
    found = [(float(point), entry) for point, entry in value]
    places = [point for point, _ in found]
    if places != sorted(set(places)) or not 0 <= places[0] <= places[-1] <= 1:
        raise ValueError(f"{key}: the points {places} must ascend within 0 (the start) and 1 (the end of the run)")
    return found


def _check_shares(found: Mapping[str, float], domain: Sequence[str]) -> None:
    if not isinstance(found, Mapping) or set(found) != set(domain):
        named = sorted(found) if isinstance(found, Mapping) else found
        raise ValueError(f"shares name {named}; they must name every source of the data once: {sorted(domain)}")
    if any(not share >= 0 for share in found.values()) or not sum(found.values()) > 0:
        raise ValueError(f"shares={dict(found)} must not be negative, and at least one must be more than 0")


def _ratio(found: Mapping[str, float]) -> dict[str, float]:
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}


def _between(points: Sequence[tuple[float, float]], place: float) -> float:
    """A value on the straight lines between points."""
    line = Schedule(tuple(point for point, _ in points), tuple((value,) for _, value in points))
    return line.at(place)[0]


def _simplest(points: Sequence[float], rows: Sequence[tuple[float, ...]]) -> Schedule:
    same = all(row == rows[0] for row in rows)
    return Schedule((0.0,), (rows[0],)) if same else Schedule(tuple(points), tuple(rows))
