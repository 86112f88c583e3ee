"""MINT: tasks solved in up to five turns with a Python session (Wang et al. 2023, arXiv 2309.10691); no feedback.

Each turn the model either runs code (`<execute>`) or proposes an answer (`<solution>`). The success rate at k is that
of episodes played from the start with k turns. All code runs in the sandbox. ALFWorld's tasks need its simulator and
are not among those that can be played here.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.sources.documents import RowSource
from pipeline.data.sources.rows import Row
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash
from pipeline.evaluation.judge.chat_benchmark import ChatBenchmark
from pipeline.evaluation.judge.grading import GRADES
from pipeline.evaluation.judge.jsonl_journal import JsonlJournal
from pipeline.evaluation.judge.session import Session
from pipeline.evaluation.model.replies import ChatReplies, Speaker
from pipeline.evaluation.sandbox import Limits, RunProgram, Sandbox, check_isolation

METRIC = "success"
EPISODES = "episodes.jsonl"
TOGETHER = 16
"""Episodes played in parallel; an interrupted run loses at most these."""
_TAG = re.compile(r"<(execute|solution)>(.*?)(?:</\1>|$)", re.S)
_FENCE = re.compile(r"^\s*```(?:python)?[ \t]*\n|\n\s*```\s*$")  # models like to fence code once more
_STOPS = ("</execute>", "</solution>")
_NOT_UNDERSTOOD = "No <execute> or <solution> block with something in it was found."
_WRONG = "That solution is not right."


Messages = list[dict[str, str]]
Result = tuple[Messages, bool]
Episode = Generator[Messages, str, Result]


@dataclass(frozen=True)
class MintTask:
    """One of MINT's data sets.

    Attributes:
        rows: with `id`, `prompt` and `reference`.
        kind: what its success rate is added up under: code, reasoning.
        grading: how a solution is judged: tests, short_answer, option or theorem.
    """

    rows: RowSource
    kind: str
    grading: str

    def __post_init__(self) -> None:
        if self.grading not in GRADES:
            raise ValueError(f"grading={self.grading!r} is not known; use one of {', '.join(GRADES)}")


@dataclass(frozen=True)
class Problem:
    """One task to be solved, under an id that is unique over all data sets."""

    id: str
    task: MintTask
    row: Mapping[str, Any]

    def is_solved(self, solution: str, run: RunProgram) -> bool:
        """Whether the solution is right."""
        return GRADES[self.task.grading](solution, self.row, run)


@dataclass(frozen=True, kw_only=True)
class Mint(ChatBenchmark):
    """The success rate at the largest turn limit; that at each limit is a part, and the kinds are categories.

    Attributes:
        tasks: the data sets by name.
        instructions: what opens an episode, with {num_turns}, {num_solutions}, {tools} and {task}. MINT's own words are
            needed for numbers that compare with published ones.
        tools: Python that defines what the model may call beside Python itself, or null.
        turn_limits: each is played from the start.
        max_solutions: proposals in an episode; where there is a single turn there is one.
        limits: what one program may use.
    """

    tasks: Mapping[str, MintTask]
    instructions: str
    tools: RowSource | None
    turn_limits: Sequence[int]
    max_solutions: int
    limits: Limits

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.turn_limits or min(self.turn_limits) < 1 or sorted(set(self.turn_limits)) != list(self.turn_limits):
            raise ValueError(f"turn_limits={list(self.turn_limits)} must be ascending numbers of at least 1")
        if self.max_solutions < 1:
            raise ValueError(f"max_solutions={self.max_solutions} must be at least 1")
        if "{task}" not in self.instructions:
            raise ValueError("instructions must hold {task}, where the problem stands")

    def prepare(self, model: Path, inputs: Workspace) -> None:
        """Refuse a missing chat template or file, and a machine that cannot isolate, before the model is loaded."""
        super().prepare(model, inputs)
        check_isolation(self.limits, inputs.isolation)
        self._problems(inputs)

    def measure(self, speaker: Speaker, inputs: Workspace) -> Outcome:
        """One item per problem: numerator 1 if it is solved within the largest limit, denominator 1.

        Raises SandboxError if the sandbox fails.
        """
        sandbox = Sandbox(self.limits, inputs.isolation, inputs.workers)
        replies = ChatReplies(speaker, self.template_settings(inputs))
        problems, prelude = self._problems(inputs), self._prelude(inputs)
        kept = JsonlJournal(inputs.kept(EPISODES))
        played = {(record["id"], record["limit"]): record for record in kept}
        total = len(problems) * len(self.turn_limits)
        left = [(p, limit) for p in problems for limit in self.turn_limits if (p.id, limit) not in played]
        for start in range(0, len(left), TOGETHER):
            chunk = left[start : start + TOGETHER]
            inputs.progress(step=len(played), total=total, note="episodes")
            episodes = [self.episode(problem, limit, Session(sandbox.run, prelude)) for problem, limit in chunk]
            for number, (messages, success) in self._play(episodes, replies, sandbox.workers):
                problem, limit = chunk[number]
                record = {"id": problem.id, "limit": limit, "success": success, "messages": messages}
                played[problem.id, limit] = record
                kept.add(record)
        sandbox.close()
        return Outcome(METRIC, True, tuple(self._item(problem, played) for problem in problems))

    def episode(self, problem: Problem, limit: int, session: Session) -> Episode:
        """One episode of at most `limit` turns: gives the conversation whenever the model is to speak, takes what it
        says, and returns the whole conversation and whether it ended with a right solution.

        A turn without a usable block is a turn lost, and an empty solution is also a proposal lost.
        """
        solutions = 1 if limit == 1 else self.max_solutions
        messages = [{"role": "user", "content": self._opening(problem, limit, solutions, session.prelude)}]
        for turn in range(1, limit + 1):
            text = yield messages
            messages.append({"role": "assistant", "content": text.strip()})
            action, content = parse(text)
            if action == "solution":
                solutions -= 1
                if content and problem.is_solved(content, session.run):
                    return messages, True
            if not solutions or turn == limit:
                break
            left = f"Turns left: {limit - turn}. Solutions left: {solutions}."
            messages.append({"role": "user", "content": f"{_observation(action, content, session)}\n{left}"})
        return messages, False

    def _play(self, episodes: Sequence[Episode], replies: ChatReplies, workers: int) -> Iterator[tuple[int, Result]]:
        """Episodes side by side, turn by turn; the number and the result of each as it ends.

        What a turn runs, it runs in the sandbox, `workers` episodes at once.
        """
        waiting = {number: next(episode) for number, episode in enumerate(episodes)}
        while waiting:
            said = replies.replies(
                list(waiting.values()),
                max_new_tokens=self.max_new_tokens,
                temperature=0.0,
                seeds=[0] * len(waiting),
                stop=_STOPS,
            )
            numbers = list(waiting)
            with ThreadPoolExecutor(workers) as pool:
                steps = list(pool.map(_step, (episodes[number] for number in numbers), (one.text for one in said)))
            for number, step in zip(numbers, steps, strict=True):
                if isinstance(step, list):
                    waiting[number] = step
                else:
                    del waiting[number]
                    yield number, step

    def _opening(self, problem: Problem, limit: int, solutions: int, tools: str) -> str:
        task = str(problem.row["prompt"]).strip()
        fields = {"num_turns": str(limit), "num_solutions": str(solutions), "tools": tools, "task": task}
        return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), self.instructions).strip()

    def _problems(self, inputs: Workspace) -> list[Problem]:
        problems = []
        for name, task in self.tasks.items():
            for row in task.rows.rows(inputs.locate, inputs.listing):
                if not isinstance(row, Row) or not {"id", "prompt", "reference"} <= set(row.fields):
                    raise ValueError(f"tasks.{name}: row {row.id} is no object with id, prompt and reference")
                problems.append(Problem(f"{name}/{row.fields['id']}", task, row.fields))
        problems.sort(key=lambda problem: (content_hash(problem.row["prompt"]), problem.id))
        chosen = problems[: self.max_items]
        if not chosen:
            raise ValueError("tasks: there is no problem in them")
        return sorted(chosen, key=lambda problem: problem.id)

    def _prelude(self, inputs: Workspace) -> str:
        rows = self.tools.rows(inputs.locate, inputs.listing) if self.tools else ()
        return "\n\n".join(str(row.fields["text"]) for row in rows if isinstance(row, Row))

    def _item(self, problem: Problem, played: Mapping[tuple[str, int], Mapping[str, Any]]) -> Item:
        successes = {limit: float(played[problem.id, limit]["success"]) for limit in self.turn_limits}
        last = self.turn_limits[-1]
        conversation = played[problem.id, last]["messages"][1:]
        return Item(
            problem.id,
            content_hash(problem.row["prompt"], problem.row["reference"], self.instructions, list(self.turn_limits)),
            successes[last],
            1.0,
            category=problem.task.kind,
            prompt=str(problem.row["prompt"]),
            answer="\n\n".join(f"{message['role']}: {message['content']}" for message in conversation),
            gold=str(problem.row["reference"]),
            parts={f"k={limit}": (success, 1.0) for limit, success in successes.items()},
        )


def parse(reply: str) -> tuple[str, str]:
    """(`execute` or `solution`, what stands in the first block); ("", "") if there is none."""
    match = _TAG.search(reply)
    return (match[1], _FENCE.sub("", match[2]).strip()) if match else ("", "")


def _step(episode: Episode, text: str) -> Messages | Result:
    """The conversation at the model's next turn, or the result."""
    try:
        return episode.send(text)
    except StopIteration as end:
        return end.value


def _observation(action: str, content: str, session: Session) -> str:
    if action == "execute" and content:
        return f"Output:\n{session.execute(content) or '(nothing was printed)'}"
    return _WRONG if action == "solution" and content else _NOT_UNDERSTOOD
