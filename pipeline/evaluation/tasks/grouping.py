"""Which tokens of many scoring requests are run together, and which once for several: plain lists of integers.

Three levels: a cluster of items that begin with the same tokens (the examples of a prompt), an item whose options begin
with the same tokens (its context), and the options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

MIN_STEM = 32
"""A beginning that items share and that is shorter than this is not worth a pass of its own."""


@dataclass(frozen=True)
class Option:
    """One request: its place among all requests, the input tokens, and the tokens its last positions predict."""

    place: int
    inputs: list[int]
    targets: list[int]


@dataclass(frozen=True)
class Group:
    """The options of one item. `common`: how many first input tokens they have in common before anything is scored."""

    options: list[Option]
    common: int

    @property
    def shared(self) -> int:
        """Tokens that are worth a pass of their own within the item: none for a single option."""
        return self.common if len(self.options) > 1 else 0

    @property
    def reads_one_position(self) -> bool:
        """Whether the options are one token each after the same input, such as the letters of MMLU."""
        first = self.options[0].inputs
        return len(self.options) > 1 and all(len(o.targets) == 1 and o.inputs == first for o in self.options)

    def longest(self) -> int:
        """Tokens of the longest option with its context."""
        return max(len(option.inputs) for option in self.options)


@dataclass(frozen=True)
class Cluster:
    """Items whose inputs begin with the same `stem` tokens."""

    groups: list[Group]
    stem: int


@dataclass(frozen=True)
class Batch:
    """Items that are run together. `shared`: tokens run once for all options of an item, at most the item's own."""

    groups: list[Group]
    shared: int
    stem: int

    @property
    def reads_one_position(self) -> bool:
        """See Group."""
        return self.groups[0].reads_one_position

    @property
    def cost(self) -> int:
        """Tokens of the padded passes after the stem."""
        longest = max(group.longest() for group in self.groups)
        if self.reads_one_position:
            return len(self.groups) * (longest - self.stem)
        return self._rows() * (longest - self.shared) + (self.shared - self.stem) * len(self.groups)

    @property
    def cached(self) -> int:
        """Tokens that the cache holds while the options are run, counted for every row."""
        rows = len(self.groups) if self.reads_one_position else self._rows()
        return rows * max(group.longest() for group in self.groups) if self.shared or self.stem else 0

    def _rows(self) -> int:
        return sum(len(group.options) for group in self.groups)


def grouped(options: Sequence[Option], owners: Sequence[Any], can_share: bool) -> list[Group]:
    """Options that stand side by side and have the same owner, as one item."""
    runs = (list(run) for _, run in groupby(range(len(owners)), key=lambda place: owners[place]))
    return [_group([options[place] for place in run], can_share) for run in runs]


def clusters(groups: Sequence[Group]) -> list[Cluster]:
    """Items by what they begin with; those that share too little with any other are one cluster with an empty stem.

    In lexicographic order items with a common beginning are neighbours. A cluster takes its next neighbour as long as
    that leaves at least half of the stem and MIN_STEM tokens.
    """
    ordered = sorted(groups, key=_beginning)
    found: list[Cluster] = []
    alone: list[Group] = []
    cluster: list[Group] = []
    stem = 0
    for group in ordered:
        common = _common(_beginning(cluster[-1]), _beginning(group)) if cluster else 0
        kept = common if len(cluster) == 1 else min(stem, common)
        if cluster and kept >= max(MIN_STEM, stem / 2 if len(cluster) > 1 else 0):
            cluster.append(group)
            stem = kept
            continue
        _close(cluster, stem, found, alone)
        cluster, stem = [group], 0
    _close(cluster, stem, found, alone)
    return ([Cluster(alone, 0)] if alone else []) + found


def batches(cluster: Cluster, budget: int, cached: int) -> Iterator[Batch]:
    """Batches of a cluster that keep within `budget` tokens run and `cached` tokens kept; a large item stands alone.

    A batch cuts the contexts of its items to the shortest; the rest of a longer one is run with each option. Items in
    the order of their contexts' lengths keep those rests short, and contexts of one length need no padding and no mask.
    """
    kept: list[Group] = []
    for group in sorted(cluster.groups, key=_order):
        bigger = _batch([*kept, group], cluster.stem)
        other = bool(kept) and kept[0].reads_one_position != group.reads_one_position
        if kept and (other or bigger.cost > budget or bigger.cached > cached):
            yield _batch(kept, cluster.stem)
            kept = []
        kept.append(group)
    if kept:
        yield _batch(kept, cluster.stem)


def _order(group: Group) -> tuple[bool, int, int]:
    return group.reads_one_position, group.shared, len(group.options) * (group.longest() - group.shared)


def _batch(groups: list[Group], stem: int) -> Batch:
    return Batch(groups, max(groups[0].shared, stem), stem)


def _group(options: list[Option], can_share: bool) -> Group:
    if not can_share:
        return Group(options, 0)
    columns = zip(*(option.inputs for option in options), strict=False)
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    # The position that predicts the first scored token stays with the option, so that a prefix is never scored.
    return Group(options, min(common, *(len(o.inputs) - len(o.targets) for o in options)))


def _beginning(group: Group) -> list[int]:
    return group.options[0].inputs[: group.common]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _close(cluster: list[Group], stem: int, found: list[Cluster], alone: list[Group]) -> None:
    if len(cluster) > 1:
        found.append(Cluster(cluster, stem))
    else:
        alone.extend(cluster)
