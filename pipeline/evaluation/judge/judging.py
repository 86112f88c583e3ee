"""An answer before a judge: the prompts of the user's file, and the rating in what the judge says.

The protocol is MT-Bench's single-answer grading (Zheng et al. 2023, arXiv 2306.05685): prompts by name, one for the
first turn and one for the second, a form of each with reference answers; the rating stands in double brackets.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.remote.endpoint import ChatModel, RefusedError, UnreachableError, UnusableError

PROMPTS = {
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}
"""(turn, with a reference answer) -> the prompt's name in the file."""
LOWEST, HIGHEST = 1.0, 10.0
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
_FIELD = re.compile(r"\{(question|answer|ref_answer)(?:_(\d))?\}")


@dataclass(frozen=True)
class JudgePrompt:
    """A system text and a template with the fields {question}, {answer}, {question_1}, {ref_answer_2} and so on."""

    name: str
    system: str
    template: str

    def messages(
        self, questions: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[dict[str, str]]:
        """What the judge is asked. All fields are filled at once, so an answer that spells one stays as it is.

        Raises:
            ValueError: the template asks for a turn that is not there.
        """
        texts = {"question": questions, "answer": answers, "ref_answer": references}

        def fill(match: re.Match[str]) -> str:
            turn = int(match[2] or len(questions))
            if not 1 <= turn <= len(texts[match[1]]):
                raise ValueError(f"the judge prompt {self.name} asks for {match[0]}, which this question does not have")
            return texts[match[1]][turn - 1]

        content = _FIELD.sub(fill, self.template)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]


def judge_prompts(rows: Sequence[Mapping[str, Any]]) -> dict[str, JudgePrompt]:
    """The prompts of a file of FastChat's layout, by name. Raises ValueError if one that is needed is missing."""
    found = {
        str(row["name"]): JudgePrompt(str(row["name"]), str(row["system_prompt"]), str(row["prompt_template"]))
        for row in rows
        if {"name", "system_prompt", "prompt_template"} <= set(row)
    }
    if missing := sorted(set(PROMPTS.values()) - set(found)):
        raise ValueError(
            f"prompts: the file has no {', '.join(missing)}; it has {', '.join(found) or 'no prompt at all'}"
        )
    return found


def rating(judgement: str) -> float:
    """The number that the judge put in double brackets, or failing that in single ones.

    Raises:
        UnusableError: there is none, or it is not between 1 and 10.
    """
    for pattern in _RATINGS:
        if match := pattern.search(judgement):
            value = float(match[1])
            if LOWEST <= value <= HIGHEST:
                return value
            raise UnusableError(f"the judge's rating {match[0]} is not between {LOWEST:g} and {HIGHEST:g}")
    raise UnusableError(f"the judge gave no rating: {judgement[:200]!r}")


@dataclass(frozen=True)
class Asked:
    """One turn before the judge: the question's id, the turn from 1, the prompt's name and the messages."""

    id: str
    turn: int
    prompt: str
    messages: Sequence[Mapping[str, str]]


def judgements(judge: ChatModel, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """A record per turn in the order in which they come: id, turn, prompt, rating, and judgement or error.

    A turn that the judge gave no rating, or refused to look at, has the rating None. Several are under way at once.

    Raises:
        UnreachableError, RefusedError: the judge cannot be reached, or refuses whatever it is asked; what was under
            way is still given before.
    """
    failure: UnreachableError | RefusedError | None = None
    is_over = threading.Event()  # what has not begun by then is not asked any more

    def one(turn: Asked) -> dict[str, Any] | None:
        try:
            return None if is_over.is_set() else _judgement(judge, turn)
        except (UnreachableError, RefusedError):
            is_over.set()  # before this thread takes the next turn
            raise

    with ThreadPoolExecutor(judge.endpoint.num_parallel) as executor:
        try:
            for future in as_completed([executor.submit(one, turn) for turn in asked]):
                try:
                    record = future.result()
                except (UnreachableError, RefusedError) as error:
                    failure = error
                    continue
                if record is not None:
                    yield record
        finally:
            is_over.set()
    if failure is not None:
        raise failure


def _judgement(judge: ChatModel, asked: Asked) -> dict[str, Any]:
    record: dict[str, Any] = {"id": asked.id, "turn": asked.turn, "prompt": asked.prompt, "rating": None}
    try:
        value, text = judge.ask(asked.messages, lambda text: (rating(text), text))
    except (UnusableError, RefusedError) as error:
        if isinstance(error, RefusedError) and error.is_for_all:
            raise
        return {**record, "error": str(error)}
    return {**record, "rating": value, "judgement": text}
