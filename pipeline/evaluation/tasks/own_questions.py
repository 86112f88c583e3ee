"""A measure of one's own: a file of questions with options and an answer, or with an answer alone.

Options are ranked by their log-probability after the prompt, per character, as ARC is in lm-evaluation-harness
(`acc_norm`). Without options a question is right if greedy decoding writes the answer, as LAMBADA is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.data.sources.documents import RowSource
from pipeline.data.sources.rows import Row
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, smallest_hashes
from pipeline.evaluation.tasks.gold import ScoredOption, gold_loss

COLUMNS = ("question", "options", "answer")
MAX_TOLD = 5
"""Wrong rows that a message lists; the others are counted."""


@dataclass(frozen=True)
class Question:
    """One row: `right` is the place of the right option; a question without options has its answer as the only one."""

    place: str
    text: str
    options: tuple[str, ...]
    right: int

    @property
    def has_choice(self) -> bool:
        """Whether there is something to choose from."""
        return len(self.options) > 1


@dataclass(frozen=True)
class OwnQuestions:
    """Questions out of one's own file.

    Attributes:
        rows: with the columns `question` (text), `options` (a list of texts, or texts by their letters; in all rows or
            in none) and `answer` (the text of an option, its letter, or its index from 0; without options the text).
        prompt: what the model is given, with {question} for the question. A space and the answer follow.
        limit: questions to score, those with the smallest content hashes; null scores all.
    """

    scores_gold: ClassVar[bool] = True
    rows: RowSource
    prompt: str
    limit: int | None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1, or null for every question")
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} does not hold {{question}}, the place of the question")

    def check_rows(self, inputs: Workspace) -> None:
        """Read the file. Raises ValueError for rows that cannot be used as questions, with file and line of each."""
        self.questions(inputs)

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item a question: numerator 1 where the model picks, or writes, the right answer."""
        from pipeline.evaluation.tasks.loglikelihood import SharedPrefixLM

        return self.score(SharedPrefixLM(model, tokenizer, inputs.progress), inputs)

    def score(self, lm: Any, inputs: Workspace) -> Outcome:
        """As `run`, with any model object of lm-evaluation-harness."""
        questions, unread = self.questions(inputs)
        kept = smallest_hashes([{"question": one.text, "options": one.options} for one in questions], self.limit)
        chosen = [questions[number] for number in kept]
        scores = iter(lm.loglikelihood(list(self._requests(chosen))))
        items = [self._item(one, [next(scores) for _ in one.options]) for one in chosen]
        note = f"Columns that nothing reads: {', '.join(unread)}."
        return Outcome("acc_norm" if questions[0].has_choice else "acc", True, tuple(items), (note,) if unread else ())

    def questions(self, inputs: Workspace) -> tuple[list[Question], list[str]]:
        """The questions in the order of the file, and the columns that nothing reads.

        Raises:
            ValueError: rows are damaged or cannot be used as questions: file and line of each, and what is required.
        """
        found: list[Question] = []
        wrong: list[str] = []
        others: Counter[str] = Counter()
        for row in self.rows.rows(inputs.locate, inputs.listing):
            place = _place(row.id)
            try:
                if not isinstance(row, Row):
                    raise ValueError(f"{row.reason}{f' ({row.detail})' if row.detail else ''}")
                found.append(_question(place, row.fields))
                others.update(str(key) for key in row.fields if key not in COLUMNS)
            except ValueError as error:
                wrong.append(f"{place}: {error}")
        wrong += _of_another_kind(found)
        if wrong:
            more = f"\n  and {len(wrong) - MAX_TOLD} more" if len(wrong) > MAX_TOLD else ""
            listed = "\n  ".join(wrong[:MAX_TOLD])
            raise ValueError(
                f"rows that cannot be used as questions: {len(wrong)}; correct or remove them:\n  {listed}{more}"
            )
        return found, sorted(others)

    def _requests(self, questions: Sequence[Question]) -> Iterator[Any]:
        from lm_eval.api.instance import Instance

        for number, one in enumerate(questions):
            for place, option in enumerate(one.options):
                yield Instance("loglikelihood", {}, (self._prompt(one), f" {option}"), place, ("own", number, 1))

    def _prompt(self, one: Question) -> str:
        return self.prompt.replace("{question}", one.text)

    def _item(self, one: Question, scores: Sequence[tuple[float, bool]]) -> Item:
        prompt, gold = self._prompt(one), one.options[one.right]
        digest = content_hash(prompt, one.options, one.right)
        options = [
            ScoredOption(option, score, len(option)) for (score, _), option in zip(scores, one.options, strict=True)
        ]
        means = [option.logprob / option.length for option in options]
        is_right = means.index(max(means)) == one.right if one.has_choice else bool(scores[0][1])
        answer = one.options[means.index(max(means))] if one.has_choice or is_right else "(another)"
        loss = gold_loss(options, {one.right})
        return Item(one.place, digest, float(is_right), 1.0, "", prompt, answer, gold, gold_loss=loss)


def _place(identity: str) -> str:
    """Where a row stands, for a person: `file#i` counts from 0, editors from 1."""
    name, mark, number = identity.rpartition("#")
    return f"{name}, line {int(number) + 1}" if mark and number.isdecimal() else identity


def _of_another_kind(questions: Sequence[Question]) -> list[str]:
    """The rows without options, in a file where others have them."""
    plain = [one for one in questions if not one.has_choice]
    if len(plain) in (0, len(questions)):
        return []
    return [f"{one.place}: has no options, while other rows have; put the two kinds into two files" for one in plain]


def _question(place: str, fields: Mapping[str, Any]) -> Question:
    """Raises ValueError: what is wrong, and what is required."""
    text = _text("question", fields.get("question"), fields)
    if fields.get("options") is None:
        return Question(place, text, (_text("answer", _spelled(fields.get("answer")), fields),), 0)
    options, labels = _options(fields["options"])
    return Question(place, text, options, _right(fields.get("answer"), options, labels))


def _text(key: str, value: Any, fields: Mapping[str, Any]) -> str:
    if value is None:
        raise ValueError(f"has no {key}; it has the columns {', '.join(map(str, fields)) or 'none'}")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}={value!r} must be text that is not empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{key} holds half of a surrogate pair, which no tokenizer takes")
    return value.strip()


def _spelled(value: Any) -> Any:
    """A number as the text that it is written as."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _options(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Their texts and their letters."""
    texts = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(texts, list | tuple) or len(texts) < 2:
        raise ValueError(f"options={value!r} must be a list of two or more texts, or texts by their letters")
    options = tuple(_text(f"options[{number}]", _spelled(one), {}) for number, one in enumerate(texts))
    if repeated := [one for one, times in Counter(options).items() if times > 1]:
        raise ValueError(f"options has {repeated[0]!r} more than once; each must be another")
    letters = map(str, value) if isinstance(value, Mapping) else map(_letter, range(len(options)))
    return options, tuple(letters)


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _right(answer: Any, options: Sequence[str], letters: Sequence[str]) -> int:
    """The place that an answer names by text, letter or index. One that names two is refused."""
    known = f"one of the options, a letter from {letters[0]} to {letters[-1]}, or an index from 0 to {len(options) - 1}"
    if answer is None:
        raise ValueError(f"has no answer; give {known}")
    if isinstance(answer, bool) or not isinstance(answer, str | int):
        raise ValueError(f"answer={answer!r} must be {known}")
    spelled = str(answer).strip()
    upper = [letter.upper() for letter in letters]
    named = {options.index(spelled)} if spelled in options else set()
    if spelled.upper() in upper:
        named.add(upper.index(spelled.upper()))
    if spelled.isdecimal() and int(spelled) < len(options) and not (set(upper) & {spelled}):
        named.add(int(spelled))
    if len(named) > 1:
        readings = " and ".join(repr(options[one]) for one in sorted(named))
        raise ValueError(f"answer={answer!r} may mean {readings}: as text, letter or index; write another of the three")
    if not named:
        raise ValueError(f"answer={answer!r} names none of the {len(options)} options; it must be {known}")
    return named.pop()
