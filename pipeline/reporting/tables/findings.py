"""Questions about models with their answers; those that have the same answer are told once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.reporting.tables.wording import listing

OF_SEVERAL = {
    r"^Does the \{\} model equal": "Do the {} models equal",
    r"^Did the \{\} model": "Did the {} models",
    r"\bthis model\b": "one of these models",
    r"\bit gained\b": "each gained",
    r"^Its ": "Their ",
    r"^The \{\} model and": "Each of the models and",
}
"""What a sentence about one model says -> what it says of several; {} is the model's name."""


@dataclass(frozen=True)
class Finding:
    """One question and its answer.

    `answer` is one of: yes, no, partly; unclear (the interval contains zero); no_loss (none shown, which is not proof
    of none); better, worse, mixed (of two variants); unknown (not measured); absent (no such model). `about`: the
    model that it is about, "" for none.
    """

    question: str
    answer: str
    text: str
    about: str = ""


def grouped(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, those that differ in the model's name alone made one, where the first of them stood."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for one in findings:
        key = (_without_name(one.question, one.about), one.answer, _without_name(one.text, one.about))
        groups.setdefault(key, []).append(one)
    return [
        own[0] if len(own) == 1 else _of_several(own, question, text) for (question, _, text), own in groups.items()
    ]


def _without_name(sentence: str, name: str) -> str:
    return re.sub(rf"\b([Tt]he) {re.escape(name)} model\b", r"\1 {} model", sentence) if name else sentence


def _of_several(own: Sequence[Finding], question: str, text: str) -> Finding:
    names = listing([one.about for one in own])
    for of_one, of_several in OF_SEVERAL.items():
        question, text = re.sub(of_one, of_several, question), re.sub(of_one, of_several, text)
    return replace(own[0], question=question.replace("{}", names), text=text.replace("{}", names), about=names)
