"""Whether a proposed solution is right, by MINT's rules for its tasks (Wang et al. 2023, arXiv 2309.10691)."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from pipeline.evaluation.sandbox import RunProgram

Grade = Callable[[str, Mapping[str, Any], RunProgram], bool]
"""(the solution, the task's row, a way to run programs) -> whether it is right."""

LOOSE, STRICT = 0.05, 0.04
"""Relative errors that count as equal: of numbers in short answers, and of TheoremQA's real numbers."""
_OPTION = re.compile(r"\b([a-z])\s*\)\s*(.*?)(?=\s*,?\s*\b[a-z]\s*\)|$)", re.S)
_LETTER = re.compile(r"(?:^|[^a-z])([a-z])\s*\)|^\W*([a-z])\W*$")
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?(?:/\d+)?", re.I)


def passes_tests(solution: str, row: Mapping[str, Any], run: RunProgram) -> bool:
    """Code that passes the task's own tests. A solution that is only a function's body continues the prompt."""
    prompt = str(row["prompt"])
    entry = re.search(r"^def (\w+)", prompt, re.M)
    code = f"{prompt}\n{solution}" if entry else solution
    if entry and f"def {entry[1]}" in solution:
        code = f"{prompt}\n    pass\n\n{solution}"
    return run(f"{code}\n\n{row['reference']}\n").ok


def equals_short_answer(solution: str, row: Mapping[str, Any], run: RunProgram) -> bool:
    """Two numbers within 5 %, or a text that holds the reference; case does not count."""
    answer, reference = solution.lower().strip(), str(row["reference"]).lower().strip()
    try:
        expected, found = float(reference), float(answer)
    except ValueError:
        return reference in answer
    return abs(expected - found) <= LOOSE * abs(expected)


def chooses_option(solution: str, row: Mapping[str, Any], run: RunProgram) -> bool:
    """The letter of the right option, or its text and no other option's.

    Stricter than MINT's own, which takes any text that has the letter somewhere in it.
    """
    answer, reference = solution.lower().strip(), str(row["reference"]).lower().strip()
    if letter := _LETTER.search(answer):
        return (letter[1] or letter[2]) == reference
    options = _options(str(row["prompt"]))
    named = [name for name, text in options.items() if text and text in answer]
    longest = max(named, key=lambda name: len(options[name]), default=None)
    others = [name for name in named if options[name] not in options.get(longest or "", "")]
    return longest == reference and not others


def equals_theorem_answer(solution: str, row: Mapping[str, Any], run: RunProgram) -> bool:
    """TheoremQA: a truth value, an option, an integer after rounding, a number within 4 %, or a list of such."""
    kind, reference = str(row.get("answer_type", "")).lower(), row["reference"]
    text = re.split(r"[=≈]", solution)[-1].replace("approximately", "").strip().strip("`$°. ")
    if kind == "bool":
        return _truth(text) is not None and _truth(text) == _truth(str(reference))
    if kind == "option":
        letter = re.search(r"\(?([a-d])\)?", text.lower())
        return letter is not None and letter[1] == str(reference).lower().strip("()")
    if kind.startswith("list"):
        return _equal_lists(text, reference)
    found = _number(text)
    return found is not None and _equal(found, reference)


GRADES: dict[str, Grade] = {
    "tests": passes_tests,
    "short_answer": equals_short_answer,
    "option": chooses_option,
    "theorem": equals_theorem_answer,
}


def _options(prompt: str) -> dict[str, str]:
    after = prompt.lower().rpartition("options:")[2]
    return {letter: text.strip(" .,[]'") for letter, text in _OPTION.findall(after)}


def _truth(text: str) -> bool | None:
    return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower().strip(" ."))


def _number(text: str) -> float | None:
    """The number of a text that has exactly one, with its unit or without; a fraction or a power of ten is one."""
    if text.startswith(("[", "(", "{")):
        return None
    found = _NUMBER.findall(re.sub(r"(?:\s*[x×*]\s*)?\b10\s*\^\s*\{?([-+]?\d+)\}?", r"e\1", text))
    if len(found) != 1:
        return None
    try:
        plain = found[0].replace(",", "")
        return float(Fraction(plain)) if "/" in plain else float(plain)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _equal(found: float, reference: Any) -> bool:
    if isinstance(reference, bool) or not isinstance(reference, int | float) or not math.isfinite(found):
        return False
    if isinstance(reference, int):
        return round(found) == reference
    return abs(found - reference) <= STRICT * abs(reference)


def _equal_lists(text: str, reference: Any) -> bool:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    if not isinstance(found, list | tuple) or not isinstance(reference, list) or len(found) != len(reference):
        return False
    if not all(isinstance(one, int | float) for one in found):
        return False
    return all(_equal(a, b) for a, b in zip(sorted(found), sorted(reference), strict=True))
