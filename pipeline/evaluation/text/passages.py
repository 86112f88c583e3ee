"""Documents on their way to a score: where they come from, which are chosen, what a scored passage is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.corpus import read_sources
from pipeline.evaluation.base import Workspace, content_hash


@dataclass(frozen=True)
class Passage:
    """Text ready to be scored.

    Attributes:
        id, hash: of the item.
        tokens: the whole sequence.
        scored: for each token whether it is scored; the first never is, as nothing precedes it.
        num_bytes: UTF-8 bytes of exactly the scored text.
        text: what people read of it.
    """

    id: str
    hash: str
    tokens: Sequence[int]
    scored: Sequence[bool]
    num_bytes: int
    text: str = ""


def held_out(inputs: Workspace, names: Sequence[str] | None, key: str | None) -> Iterator[tuple[str, Any]]:
    """("source/id", value of `key`, or all of them) of the data artifact's held-out documents.

    Raises ValueError if there is no artifact or it has no source of a name.
    """
    if inputs.data is None:
        raise ValueError("this benchmark reads held-out documents; give it `data`, or a source of its own")
    known = list(read_sources(inputs.data)["sources"])
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"sources: the data has no {', '.join(unknown)}; it has {', '.join(known)}")
    for name in names or known:
        with (inputs.data / f"{name}.heldout.jsonl").open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                yield f"{name}/{row['id']}", row[key] if key else row


def by_hash(candidates: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Candidates in the order of their content hashes: an order that no file and no model decides."""
    return sorted(candidates, key=lambda pair: (content_hash(pair[1]), pair[0]))


def within(passages: Iterable[Passage | None], max_items: int | None, max_tokens: int | None) -> list[Passage]:
    """The first passages that keep within both bounds; at least one if there is any."""
    chosen: list[Passage] = []
    total = 0
    for passage in passages:
        if passage is None:
            continue
        total += len(passage.tokens)
        if chosen and max_tokens is not None and total > max_tokens:
            break
        chosen.append(passage)
        if len(chosen) == max_items:
            break
    return chosen


def check_bounds(benchmark: Any, *names: str) -> None:
    """Raise ValueError if a named field is neither null nor at least 1."""
    for name in names:
        value = getattr(benchmark, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1, or null for no bound")
