"""Questions of several turns with reference answers, as FastChat lays them out in JSON lines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_TURNS = 2
"""As many turns as there are judge prompts for."""


@dataclass(frozen=True)
class Question:
    """One question: its turns, and a reference answer to each turn or none at all."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]


def read_references(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Question id -> reference answers by turn. Raises ValueError for a row that has none."""
    found = {}
    for row in rows:
        try:
            found[str(row["question_id"])] = tuple(map(str, row["choices"][0]["turns"]))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"references: a row needs question_id and choices[0].turns; found {sorted(row)}"
            ) from error
    return found


def read_questions(
    rows: Iterable[Mapping[str, Any]], references: Mapping[str, tuple[str, ...]], categories: Collection[str]
) -> list[Question]:
    """The questions in the order of the file; those of `categories` have references.

    Raises:
        ValueError: a row is no question, there is none, or a reference is missing.
    """
    questions = [_question(row, references, categories) for row in rows]
    if not questions:
        raise ValueError("questions: the file has no question")
    return questions


def _question(
    row: Mapping[str, Any], references: Mapping[str, tuple[str, ...]], categories: Collection[str]
) -> Question:
    try:
        name, category, turns = str(row["question_id"]), str(row["category"]), tuple(map(str, row["turns"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"questions: a row needs question_id, category and turns; {error!r} in {row}") from error
    if not 1 <= len(turns) <= MAX_TURNS:
        raise ValueError(
            f"questions: question {name} has {len(turns)} turns; the judge has prompts for 1 or {MAX_TURNS}"
        )
    needed = category in categories
    if needed and len(references.get(name, ())) < len(turns):
        raise ValueError(f"references: question {name} ({category}) has no reference answer to each of its turns")
    return Question(name, category, turns, references[name] if needed else ())
