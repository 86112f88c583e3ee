"""Programming problems: what a model is shown, and how its answer becomes a program that is judged.

Prompts, stops and what is done to an answer follow bigcode-evaluation-harness, the one that the LLaMA Pro paper used:
the text before the first stop is kept, put behind the prompt and before the problem's own tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.data.sources.documents import RowSource
from pipeline.data.sources.rows import field_value
from pipeline.evaluation.base import Workspace, every_row
from pipeline.evaluation.sandbox import Ran

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: its name in its data set.
        prompt: what the model continues.
        before, after: what stands before and after an answer in the program that is judged.
        reference: the data set's own solution as a whole program with the tests, or nothing if it has none.
        gold: what counts as right, for people to read.
        expected: the number that the program must print, to within `tolerance`; None if running to the end is enough.
    """

    id: str
    prompt: str
    before: str
    after: str
    reference: str
    gold: str
    expected: float | None = None
    tolerance: float = 0.0

    def program(self, answer: str) -> str:
        """The program that judges an answer which was cut at its stop."""
        return f"{self.before}{answer}\n{self.after}"

    def is_solved(self, ran: Ran) -> bool:
        """Whether a program that was made of an answer shows it to be right."""
        if not ran.ok or self.expected is None:
            return ran.ok
        return _close(ran.stdout, self.expected, self.tolerance)


class Form(Protocol):
    """A frozen dataclass named by `_target_`: how the problems of one data set are put."""

    @property
    def stop(self) -> Sequence[str]:
        """Texts that end an answer."""
        ...

    def problems(self, rows: Sequence[Fields], inputs: Workspace) -> list[Problem]:
        """The problems of these rows. Raises ValueError if a row lacks a column."""
        ...


@dataclass(frozen=True)
class HumanEval:
    """HumanEval (Chen et al. 2021), and HumanEval+ (Liu et al. 2023, arXiv 2305.01210), which has its columns.

    Attributes:
        stop: texts that end an answer.
        strip_prompt: leave out the blanks and newlines around the prompt, which split tokens in a way unseen in text.
    """

    stop: Sequence[str]
    strip_prompt: bool

    def problems(self, rows: Sequence[Fields], inputs: Workspace) -> list[Problem]:
        """See `Form`."""
        return [self._problem(row) for row in rows]

    def _problem(self, row: Fields) -> Problem:
        whole, solution, test, entry = _columns(row, "prompt", "canonical_solution", "test", "entry_point")
        prompt = whole.strip() if self.strip_prompt else whole
        after = f"\n{test}\ncheck({entry})"
        reference = f"{whole}{solution}\n{after}"
        return Problem(str(row["task_id"]), prompt, prompt, after, reference, solution)


@dataclass(frozen=True)
class Mbpp:
    """MBPP (Austin et al. 2021, arXiv 2108.07732), and MBPP+, in the zero-shot form: a docstring with one test in it.

    Attributes:
        stop: texts that end an answer.
        columns: the columns of text, solution and tests: {text: ..., code: ..., tests: ...}. Dotted paths reach into
            objects. Tests are a list of statements, or a text.
        with_setup: run the problem's `test_setup_code` between the answer and the tests.
    """

    stop: Sequence[str]
    columns: Mapping[str, str]
    with_setup: bool

    def problems(self, rows: Sequence[Fields], inputs: Workspace) -> list[Problem]:
        """See `Form`."""
        return [self._problem(self.read(row)) for row in rows]

    def read(self, row: Fields) -> dict[str, Any]:
        """id, text, code, shown (test statements that a prompt may show) and after (what judges) of a row."""
        text, code, tests = _columns(row, *(self.columns[key] for key in ("text", "code", "tests")))
        parent = self.columns["text"].rpartition(".")[0]
        beside = {**row, **(field_value(row, parent) if parent else {})}  # type: ignore[dict-item]
        setup = f"{beside.get('test_setup_code') or ''}\n" if self.with_setup else ""
        shown = beside.get("test_list") or []
        after = setup + (tests if isinstance(tests, str) else "\n".join(tests))
        return {"id": str(beside["task_id"]), "text": text, "code": code, "shown": list(shown), "after": after}

    def _problem(self, read: Fields) -> Problem:
        prompt = f'"""\n{read["text"]}\n{read["shown"][0]}\n"""\n'
        return Problem(
            read["id"], prompt, prompt, read["after"], f"{read['code']}\n{read['after']}", read["code"]
        )  # fmt: skip


@dataclass(frozen=True)
class FewShotMbpp(Mbpp):
    """MBPP in the form of its own paper: solved problems first, then the text with all of its tests.

    Attributes:
        template: one problem; {text}, {tests} and {code} are replaced, the last being where an answer goes.
        separator: stands between problems.
        examples: rows of solved problems, with the columns task_id, text, code and test_list.
        example_ids: the `task_id` of those to show, in this order.
    """

    template: str
    separator: str
    examples: RowSource
    example_ids: Sequence[int]

    def __post_init__(self) -> None:
        if any(part not in self.template for part in ("{text}", "{tests}", "{code}")):
            raise ValueError("template must hold {text}, {tests} and {code}, where a problem's parts go")

    def problems(self, rows: Sequence[Fields], inputs: Workspace) -> list[Problem]:
        """See `Form`. Raises ValueError if an example is missing."""
        known = {row["task_id"]: row for row in every_row(self.examples, inputs)}
        if missing := [number for number in self.example_ids if number not in known]:
            raise ValueError(f"example_ids: no example has task_id {missing}; there are {sorted(known)[:12]}")
        shots = [known[number] for number in self.example_ids]
        shown = [self._filled(shot["text"], shot["test_list"]).replace("{code}", shot["code"]) for shot in shots]
        return [self._few_shot(self.read(row), shown) for row in rows]

    def _few_shot(self, read: Fields, shown: Sequence[str]) -> Problem:
        head = self._filled(read["text"], read["shown"]).partition("{code}")[0]
        prompt = self.separator.join([*shown, head])
        return Problem(read["id"], prompt, "", read["after"], f"{read['code']}\n{read['after']}", read["code"])

    def _filled(self, text: str, tests: Sequence[str]) -> str:
        return self.template.replace("{tests}", "\n".join(tests)).replace("{text}", text)


@dataclass(frozen=True)
class ProgramOfThought:
    """Word problems answered by a Python function whose value is the answer (Gao et al. 2022, arXiv 2211.10435).

    Attributes:
        stop: texts that end an answer.
        question, answer: columns; the answer is the number after the last "####" of it.
        template: one problem; {question} and {code} are replaced, the last being where an answer goes.
        separator: stands between problems.
        start: how every answer begins; it ends the prompt, so that no prompt ends in newlines, which many tokenizers
            join with what follows. Empty leaves the beginning to the model, as the reference harness does.
        call: is run after an answer and must print a number.
        examples: rows of solved problems, with the columns question and code.
        tolerance: how far from the right number the printed one may be.
    """

    stop: Sequence[str]
    question: str
    answer: str
    template: str
    separator: str
    start: str
    call: str
    examples: RowSource
    tolerance: float

    def __post_init__(self) -> None:
        if "{question}" not in self.template or "{code}" not in self.template:
            raise ValueError("template must hold {question} and {code}, where a problem's parts go")

    def problems(self, rows: Sequence[Fields], inputs: Workspace) -> list[Problem]:
        """See `Form`."""
        shots = every_row(self.examples, inputs)
        shown = [self.template.replace("{code}", r["code"]).replace("{question}", r["question"]) for r in shots]
        return [self._problem(number, row, shown) for number, row in enumerate(rows)]

    def _problem(self, number: int, row: Fields, shown: Sequence[str]) -> Problem:
        question, answer = _columns(row, self.question, self.answer)
        gold = answer.rpartition("####")[2].strip()
        head = self.template.partition("{code}")[0].replace("{question}", question)
        prompt = self.separator.join([*shown, head + self.start])
        try:
            expected = float(gold.replace(",", ""))
        except ValueError as error:
            raise ValueError(f"problem {number}: {gold!r} after #### is not a number; correct the data") from error
        return Problem(str(number), prompt, self.start, self.call, "", gold, expected, self.tolerance)


def _columns(row: Fields, *names: str) -> list[Any]:
    try:
        return [field_value(row, name) for name in names]
    except KeyError as error:
        raise ValueError(f"a problem cannot be read: {error.args[0]}") from error


def _close(printed: str, expected: float, tolerance: float) -> bool:
    """Whether the last line that was printed is the number."""
    lines = printed.strip().splitlines()
    try:
        found = float(lines[-1].strip().replace(",", "")) if lines else math.nan
    except ValueError:
        return False
    return abs(found - expected) < tolerance
