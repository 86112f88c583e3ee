"""Sums over memorised keys, the task with which CALM (arXiv 2401.02412) shows that two models are composed.

A key is two letters that stand for a digit. One model learns what the keys stand for, another learns to add digits, and
neither can add keys. Nothing is read: lines are drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from string import ascii_lowercase
from typing import Any, Literal

from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.rows import Row

FORMS = ("digits", "keys", "values", "sums")
KEYS = ("all", "known", "new")


@dataclass(frozen=True)
class KeyArithmetic:
    """Rows of lines, or of single questions.

    Attributes:
        form: "digits" (`7 + 5 = 12.`), "keys" (`ab 7 + cd.`: each key is followed by its digit, or is not, by chance),
            "values" (the question `ab`, the digits to choose from, the answer `7`) or "sums" (`ab + cd = 12.`).
        keys: those that lines are of: "all", the first `share` of them ("known") or the rest ("new").
        num_keys: in all; every digit is that of as many keys, or of one more.
        share: of the keys that are known to the training of a composed model; the paper's is 0.2.
        count: rows.
        lines: of a row, in its column `text`; null: a row is one question, with the columns `question` and `answer`.
        seed: of the keys and of the lines.
    """

    form: Literal["digits", "keys", "values", "sums"]
    keys: Literal["all", "known", "new"]
    num_keys: int
    share: float
    count: int
    lines: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.form not in FORMS or self.keys not in KEYS:
            raise ValueError(
                f"form={self.form!r} and keys={self.keys!r}: use one of {', '.join(FORMS)} and of {', '.join(KEYS)}"
            )
        most = len(ascii_lowercase) ** 2
        if not 2 <= self.num_keys <= most or not 0 < self.share < 1:
            raise ValueError(f"num_keys={self.num_keys} must lie in [2, {most}], and share={self.share} in (0, 1)")
        if self.form == ("keys" if self.lines is None else "values"):
            raise ValueError(
                f"form={self.form} with lines={self.lines}: keys are lines without a question, values questions alone"
            )

    def rows(self, locate: Locate, listing: Listing) -> Iterator[Row]:
        """The rows; neither argument is asked. Of single questions none comes twice, and at most all there are."""
        drawn = random.Random(f"{self.seed} {self.form} {self.keys} {self.lines}")
        digits = {str(one): one for one in range(10)} if self.form == "digits" else self.digits()
        if self.lines is None:
            every = self._questions(digits)
            options: dict[str, Any] = {"options": [str(one) for one in range(10)]} if self.form == "values" else {}
            for number, (question, answer) in enumerate(drawn.sample(every, min(self.count, len(every)))):
                yield Row(str(number), {"question": question, **options, "answer": answer})
            return
        for number in range(self.count):
            lines = (self._line(drawn, drawn.choices([*digits], k=2), digits) for _ in range(self.lines))
            yield Row(str(number), {"text": "\n".join(lines)})

    def digits(self) -> dict[str, int]:
        """The digit of every key that lines are of."""
        drawn = random.Random(f"{self.seed} keys")
        names = drawn.sample([a + b for a in ascii_lowercase for b in ascii_lowercase], self.num_keys)
        digits = {name: number % 10 for number, name in enumerate(names)}
        known = round(self.num_keys * self.share)
        parts = {"all": names, "known": names[:known], "new": names[known:]}
        return {name: digits[name] for name in parts[self.keys]}

    def _questions(self, digits: dict[str, int]) -> list[tuple[str, str]]:
        """Every question and its answer."""
        if self.form == "values":
            return [(name, str(digit)) for name, digit in digits.items()]
        return [_sum(first, second, digits) for first, second in product(digits, repeat=2)]

    def _line(self, drawn: random.Random, pair: list[str], digits: dict[str, int]) -> str:
        if self.form == "keys":
            return " + ".join(f"{one} {digits[one]}" if drawn.random() < 0.5 else one for one in pair) + "."
        return " ".join(_sum(pair[0], pair[1], digits))


def _sum(first: str, second: str, digits: dict[str, int]) -> tuple[str, str]:
    return f"{first} + {second} =", f"{digits[first] + digits[second]}."
