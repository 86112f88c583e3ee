"""MT-Bench: two-turn questions answered by the model and rated by a stronger one (Zheng et al. 2023, arXiv 2306.05685).

Questions, judge prompts and reference answers come from the user's files, in FastChat's layout. Answers and judgements
are kept one by one as they come; an interrupted or incomplete run goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.sources.documents import RowSource
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, every_row
from pipeline.evaluation.judge.chat_benchmark import ChatBenchmark
from pipeline.evaluation.judge.jsonl_journal import JsonlJournal
from pipeline.evaluation.judge.judging import PROMPTS, Asked, JudgePrompt, judge_prompts, judgements
from pipeline.evaluation.judge.questions import Question, read_questions, read_references
from pipeline.evaluation.model.replies import ChatReplies, Speaker
from pipeline.evaluation.remote.endpoint import ChatModel, Endpoint, RefusedError, UnreachableError

METRIC = "rating"
ANSWERS, JUDGEMENTS, PARTIAL = "answers.jsonl", "judgements.jsonl", "partial.json"

TOGETHER = 16
"""Questions asked together; an interrupted run loses at most their answers."""

Prompts = Mapping[str, JudgePrompt]
Answers = Mapping[str, list[str]]
Judged = dict[tuple[str, int], dict[str, Any]]
"""(question, turn from 1) -> the judgement of it."""


class IncompleteError(RuntimeError):
    """Too little was judged for a result; what there is, is kept, and the same command goes on from there."""


@dataclass(frozen=True, kw_only=True)
class MTBench(ChatBenchmark):
    """The mean rating, from 1 to 10, over all turns; a question is one item, so that its turns stay together.

    Attributes:
        questions, prompts, references: rows of question.jsonl, judge_prompts.jsonl and reference_answer/*.jsonl.
        reference_categories: categories whose answers the judge compares with a reference.
        judge: the name of the judging model at the endpoint.
        judge_temperature, judge_max_tokens: of its judgements.
        temperatures: of the model's answers by category; 0 is greedy.
        seed: of sampled answers, together with the question and the turn.
        max_unrated: the share of turns that may stay without a rating because the judge gave none; they are left out of
            the mean and counted. Above it there is no result.
    """

    questions: RowSource
    prompts: RowSource
    references: RowSource
    reference_categories: Sequence[str]
    judge: str
    judge_temperature: float
    judge_max_tokens: int
    temperatures: Mapping[str, float]
    seed: int
    max_unrated: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_unrated < 1:
            raise ValueError(f"max_unrated={self.max_unrated} must be a share from 0 to below 1")

    def prepare(self, model: Path, inputs: Workspace) -> None:
        """Refuse a missing chat template, key or file before the model is loaded. Raises ValueError."""
        super().prepare(model, inputs)
        Endpoint.of(inputs.endpoint).key()
        self._read(inputs)

    def measure(self, speaker: Speaker, inputs: Workspace) -> Outcome:
        """One item per question: numerator the sum of its turns' ratings, denominator their number.

        Raises:
            ValueError: there is no chat template, or a file is not what it should be.
            IncompleteError: the judge cannot be reached, refuses whatever it is asked, or rates too little.
        """
        questions, prompts = self._read(inputs)
        answers = self._answer(ChatReplies(speaker, self.template_settings(inputs)), questions, inputs)
        judged = self._judge(questions, prompts, answers, inputs)
        return self._outcome(questions, prompts, answers, judged)

    def _read(self, inputs: Workspace) -> tuple[list[Question], dict[str, JudgePrompt]]:
        references = read_references(every_row(self.references, inputs, "references"))
        rows = every_row(self.questions, inputs, "questions")
        questions = read_questions(rows, references, self.reference_categories)
        if unknown := sorted({question.category for question in questions} - set(self.temperatures)):
            known = ", ".join(self.temperatures)
            raise ValueError(f"questions: the categories {unknown} have no temperature; there are {known}")
        questions.sort(key=lambda question: (content_hash(question.turns), question.id))
        chosen = sorted(questions[: self.max_items], key=lambda question: question.id)
        return chosen, judge_prompts(every_row(self.prompts, inputs, "prompts"))

    def _answer(self, replies: ChatReplies, questions: Sequence[Question], inputs: Workspace) -> dict[str, list[str]]:
        """Every question's answers, turn by turn; those of an earlier attempt are taken as they are."""
        kept = JsonlJournal(inputs.kept(ANSWERS))
        answers = {record["id"]: record["turns"] for record in kept}
        left = [question for question in questions if question.id not in answers]
        for temperature in sorted({self.temperatures[question.category] for question in left}):
            alike = [question for question in left if self.temperatures[question.category] == temperature]
            for start in range(0, len(alike), TOGETHER):
                inputs.progress(step=len(answers), total=2 * len(questions), note="answers")
                chunk = alike[start : start + TOGETHER]
                for question, turns in zip(chunk, self._converse(replies, chunk, temperature), strict=True):
                    answers[question.id] = turns
                    kept.add({"id": question.id, "category": question.category, "turns": turns})
        return answers

    def _converse(self, replies: ChatReplies, questions: Sequence[Question], temperature: float) -> list[list[str]]:
        """The answers to several questions, by turn; questions with one turn drop out after it."""
        messages: list[list[dict[str, str]]] = [[] for _ in questions]
        for turn in range(max(len(question.turns) for question in questions)):
            asked = [i for i, question in enumerate(questions) if turn < len(question.turns)]
            for i in asked:
                messages[i].append({"role": "user", "content": questions[i].turns[turn]})
            said = replies.replies(
                [messages[i] for i in asked],
                max_new_tokens=self.max_new_tokens,
                temperature=temperature,
                seeds=[int(content_hash(self.seed, questions[i].turns, turn)[:12], 16) for i in asked],
            )
            for i, reply in zip(asked, said, strict=True):
                messages[i].append({"role": "assistant", "content": reply.text.strip()})
        return [[m["content"] for m in one if m["role"] == "assistant"] for one in messages]

    def _judge(self, questions: Sequence[Question], prompts: Prompts, answers: Answers, inputs: Workspace) -> Judged:
        """The kept judgements. Turns without a rating are asked for again."""
        kept, partial = JsonlJournal(inputs.kept(JUDGEMENTS)), inputs.kept(PARTIAL)
        endpoint = Endpoint.of(inputs.endpoint)
        judge = ChatModel(self.judge, endpoint, temperature=self.judge_temperature, max_tokens=self.judge_max_tokens)
        turns = [(question, turn) for question in questions for turn in range(1, len(question.turns) + 1)]
        found = {(record["id"], record["turn"]): record for record in kept}
        open_turns = [(q, t) for q, t in turns if found.get((q.id, t), {}).get("rating") is None]
        failure = ""
        try:
            asked = [_asked(question, turn, prompts, answers[question.id]) for question, turn in open_turns]
            for record in judgements(judge, asked):
                found[record["id"], record["turn"]] = record
                kept.add(record)
                inputs.progress(step=len(turns) + len(found), total=2 * len(turns), note="judgements")
        except (UnreachableError, RefusedError) as error:
            failure = str(error)
        unrated = [(q, t) for q, t in turns if found.get((q.id, t), {}).get("rating") is None]
        if failure or len(unrated) > self.max_unrated * len(turns):
            reason = failure or next(found[q.id, t]["error"] for q, t in unrated)
            raise self._incomplete(questions, found, len(turns), reason, partial)
        partial.unlink(missing_ok=True)
        return found

    def _incomplete(
        self, questions: Sequence[Question], found: Judged, num_turns: int, reason: str, partial: Path
    ) -> IncompleteError:
        """The partial result, written beside the judgements, and said in the error."""
        categories = {question.id: question.category for question in questions}
        ratings: dict[str, list[float]] = {}
        for (name, _), record in found.items():
            if record["rating"] is not None and name in categories:
                ratings.setdefault(categories[name], []).append(record["rating"])
        every = [value for values in ratings.values() for value in values]
        content = {
            "complete": False,
            "num_rated": len(every),
            "num_turns": num_turns,
            "mean": sum(every) / len(every) if every else None,
            "categories": {name: sum(values) / len(values) for name, values in sorted(ratings.items())},
            "reason": reason,
        }
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        mean = f", mean so far {content['mean']:.2f}" if every else ""
        return IncompleteError(
            f"MT-Bench is not complete: {len(every)} of {num_turns} turns are rated{mean}; {reason}. Answers and "
            f"judgements are kept in {partial.parent}, the partial result is {partial.name} there, and the same "
            "command goes on from there"
        )

    def _outcome(self, questions: Sequence[Question], prompts: Prompts, answers: Answers, judged: Judged) -> Outcome:
        judge = (self.judge, self.judge_temperature, [vars(prompts[name]) for name in PROMPTS.values()])
        items = []
        for question in questions:
            records = [judged[question.id, turn] for turn in range(1, len(question.turns) + 1)]
            rated = [(turn, r["rating"]) for turn, r in enumerate(records, start=1) if r["rating"] is not None]
            items.append(
                Item(
                    question.id,
                    content_hash(question.turns, question.references, judge),
                    sum(value for _, value in rated),
                    float(len(rated)),
                    category=question.category,
                    prompt=_by_turn(question.turns),
                    answer=_by_turn(_with_rating(a, r) for a, r in zip(answers[question.id], records, strict=True)),
                    gold=_by_turn(question.references),
                    parts={f"turn {turn}": (value, 1.0) for turn, value in rated},
                )
            )
        num_turns = sum(len(question.turns) for question in questions)
        unrated = num_turns - int(sum(item.denominator for item in items))
        note = f"{unrated} of {num_turns} turns have no rating, because the judge gave none; they are left out."
        return Outcome(METRIC, True, tuple(items), (note,) if unrated else ())


def _asked(question: Question, turn: int, prompts: Mapping[str, JudgePrompt], answers: Sequence[str]) -> Asked:
    prompt = prompts[PROMPTS[turn, bool(question.references)]]
    messages = prompt.messages(question.turns[:turn], answers[:turn], question.references[:turn])
    return Asked(question.id, turn, prompt.name, messages)


def _by_turn(texts: Any) -> str:
    return "\n\n".join(f"{turn}. {text}" for turn, text in enumerate(texts, start=1))


def _with_rating(answer: str, record: Mapping[str, Any]) -> str:
    value = "no rating" if record["rating"] is None else f"{record['rating']:g}"
    return f"{answer}\n[judge: {value}] {record.get('judgement') or record.get('error', '')}"
