"""Programs that a model writes, run in the sandbox: HumanEval, MBPP, programs of thought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.sources.documents import RowSource
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, cut, every_row, score, smallest_hashes
from pipeline.evaluation.code.pass_at_k import pass_at_k
from pipeline.evaluation.code.problems import Form, Problem
from pipeline.evaluation.sandbox import Limits, Ran, Sandbox

if TYPE_CHECKING:  # torch comes with it; a request is checked without
    from pipeline.evaluation.model.generation import Generator

SOLVED = "solved"


@dataclass(frozen=True)
class CodeBenchmark:
    """Problems that a model answers with programs, and the share of them that its programs solve.

    The score is pass@k, estimated without bias from `num_samples` programs a problem; with greedy decoding and one
    program a problem it is the share of problems solved.

    Attributes:
        rows: where the problems come from.
        form: how they are put.
        limit: problems to score, those with the smallest content hashes; null is all.
        num_samples: programs for each problem.
        k: pass@k for these k; the first is the score, the others stand beside it.
        temperature: 0 decodes greedily.
        top_p: probability of the tokens sampled from; 1 is all of them.
        max_new_tokens: of one answer.
        seed: of the draws.
        limits: what one program may use.
    """

    rows: RowSource
    form: Form
    limit: int | None
    num_samples: int
    k: Sequence[int]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    limits: Limits

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or max(self.k) > self.num_samples:
            raise ValueError(f"k={list(self.k)} must be numbers from 1 to num_samples={self.num_samples}")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"num_samples={self.num_samples} with temperature=0 gives as many equal programs; set a temperature "
                "(0.8 is usual for pass@100, 0.2 for pass@1) or num_samples=1"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature={self.temperature} must not be negative, top_p={self.top_p} within (0, 1]")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1, or null for every problem")

    def prepare(self, model: Path, inputs: Workspace) -> None:
        """Refuse unreadable problems and a machine that cannot isolate, before the model is loaded."""
        self.problems(inputs)
        Sandbox(self.limits, inputs.isolation, 1)

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per problem: numerator pass@k for the first k, denominator 1."""
        from pipeline.evaluation.model.generation import LocalGenerator

        return self.measure(LocalGenerator(model, tokenizer, inputs.progress), inputs)

    def measure(self, generator: Generator, inputs: Workspace) -> Outcome:
        """As `run`, with programs from anything that generates. Raises SandboxError if the sandbox fails."""
        from pipeline.evaluation.model.generation import GenerationSettings

        problems = self.problems(inputs)
        settings = GenerationSettings(
            self.form.stop, self.max_new_tokens, self.temperature, self.top_p, self.num_samples, self.seed
        )
        answers = generator.generate([problem.prompt for problem in problems], settings)
        return self.judge(problems, answers, inputs)

    def problems(self, inputs: Workspace) -> list[Problem]:
        """The problems to be answered. Raises ValueError if there is none or a row cannot be read."""
        rows = every_row(self.rows, inputs)
        found = self.form.problems(rows, inputs)
        if not found:
            raise ValueError("the benchmark's source holds no problem; correct its path, include or exclude")
        return [found[number] for number in smallest_hashes(rows, self.limit)]

    def judge(self, problems: Sequence[Problem], answers: Sequence[Sequence[str]], inputs: Workspace) -> Outcome:
        """The outcome of these answers, `num_samples` for each problem, however they came to be."""
        kept = [[cut(answer, self.form.stop) for answer in of_one] for of_one in answers]
        pairs = zip(problems, kept, strict=True)
        programs = [problem.program(answer) for problem, of_one in pairs for answer in of_one]
        sandbox = Sandbox(self.limits, inputs.isolation, inputs.workers)
        ran = _counted(sandbox.run_all(programs), len(programs), inputs)
        items = [
            self._item(problem, of_one, [_judged(problem, one) for one in islice(ran, len(of_one))])
            for problem, of_one in zip(problems, kept, strict=True)
        ]
        sandbox.close()
        note = f"Programs were judged with isolation={sandbox.level}."
        also = {name: score(_by_part(items, name)).value for name in map(_name, self.k[1:])}
        return Outcome(_name(self.k[0]), True, tuple(items), (note,), also)

    def _item(self, problem: Problem, answers: Sequence[str], verdicts: Sequence[str]) -> Item:
        correct, size = verdicts.count(SOLVED), len(verdicts)
        estimates = {_name(k): (pass_at_k(size, correct, k), 1.0) for k in self.k}
        first = f"{answers[0]}\n\n({verdicts[0]})"
        answer = first if size == 1 else f"{first}\n\n({correct} of {size} programs solve it)"
        digest = content_hash(problem.prompt, problem.before, problem.after, problem.expected)
        value, _ = estimates.pop(_name(self.k[0]))
        texts = problem.prompt, answer, problem.gold
        return Item(problem.id, digest, value, 1.0, "", *texts, parts=estimates)


def _name(k: int) -> str:
    return f"pass@{k}"


def _by_part(items: Sequence[Item], name: str) -> list[Item]:
    return [replace(item, numerator=item.parts[name][0], denominator=item.parts[name][1]) for item in items]


def _counted(ran: Iterator[Ran], total: int, inputs: Workspace) -> Iterator[Ran]:
    for done, one in enumerate(ran, 1):
        inputs.progress(step=done, total=total, note="programs judged")
        yield one


def _judged(problem: Problem, ran: Ran) -> str:
    """SOLVED, or why not in a few words; all that is kept of a program's output, which may be large."""
    if problem.is_solved(ran):
        return SOLVED
    return f"{ran.outcome}: {ran.error}" if not ran.ok else f"printed {ran.stdout.strip()[-80:]!r}"
