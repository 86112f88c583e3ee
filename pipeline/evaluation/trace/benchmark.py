"""One of TRACE's eight tasks: answers that a model writes to prompts of its test file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.chat.trace import asked
from pipeline.data.sources.documents import RowSource
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, every_row, smallest_hashes
from pipeline.evaluation.trace import metrics

if TYPE_CHECKING:  # torch comes with it; a request is checked without
    from pipeline.evaluation.model.replies import Speaker

_PARAGRAPH, _SIMPLIFICATION = "Paragraph:\n", "\n\nSimplification:"
"""What stands around 20Minuten's paragraph in a prompt."""


class Example(NamedTuple):
    """A row of a test file."""

    prompt: str
    answer: str


Scorer = Callable[[str, Example, bool], float]
"""The score of a prediction in [0, 1]; the last argument: as TRACE's code computes it, quirks and all."""


def _text(prediction: str, example: Example, faithful: bool) -> float:
    if faithful:
        return metrics.exact_match(prediction, example.answer)
    return metrics.exact_match(prediction.strip(), example.answer.strip())


def _letter(prediction: str, example: Example, faithful: bool) -> float:
    """The answer is the first character, what follows are reasons."""
    texts = (prediction, example.answer) if faithful else (prediction.lstrip(), example.answer.lstrip())
    return metrics.exact_match(*(text[:1] for text in texts))


def _summary(prediction: str, example: Example, faithful: bool) -> float:
    """TRACE passes the two the wrong way round, which matters where a text has several sentences."""
    if not prediction or not example.answer:
        return 0.0
    pair = (example.answer, prediction) if faithful else (prediction, example.answer)
    return metrics.rouge_l(*pair)


def _code(prediction: str, example: Example, faithful: bool) -> float:
    texts = metrics.code_of(prediction), metrics.code_of(example.answer)
    return metrics.edit_similarity(*texts, rounded=faithful)


def _simplification(prediction: str, example: Example, faithful: bool) -> float:
    """TRACE takes the whole prompt for the text that is simplified, its instruction included."""
    source = example.prompt
    if not faithful:
        source = source.partition(_PARAGRAPH)[2].removesuffix(_SIMPLIFICATION) or source
    return metrics.sari(source, prediction, [example.answer])


TASKS: dict[str, tuple[str, Scorer]] = {
    "C-STANCE": ("exact_match", _text),
    "FOMC": ("exact_match", _text),
    "MeetingBank": ("rouge_l", _summary),
    "Py150": ("edit_similarity", _code),
    "ScienceQA": ("exact_match", _letter),
    "NumGLUE-cm": ("exact_match", _text),
    "NumGLUE-ds": ("exact_match", _text),
    "20Minuten": ("sari", _simplification),
}
"""Name of a task, which is that of its folder -> its metric; in TRACE's order."""


@dataclass(frozen=True)
class TraceTask:
    """A task of TRACE (Wang et al. 2023, arXiv 2310.06762), in its published file form: rows of `prompt` and `answer`.

    Attributes:
        task: one of `TASKS`.
        rows: of its test file. Their number is what counts: FOMC has 496, NumGLUE-cm 81, NumGLUE-ds 325 and 20Minuten
            200, whatever the paper says.
        template: chat template of prompt and answer, as `ChatData` has it: that which the tasks are trained with.
        faithful: scored as TRACE's code does: exact match without stripping, ScienceQA's first character as it stands,
            ROUGE-L with prediction and reference exchanged, edit similarity in whole percents, SARI with the whole
            prompt as its source. Otherwise as is meant.
        max_prompt_tokens: of a prompt its last ones are kept, so that a long one loses its instruction.
        max_new_tokens: of an answer.
        temperature: 0 decodes greedily.
        seed: of the draws.
        limit: rows to score, those with the smallest content hashes; null scores all.
    """

    task: str
    rows: RowSource
    template: str
    faithful: bool
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float
    seed: int
    limit: int | None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is not one of TRACE's; use {', '.join(TASKS)}")
        if self.max_prompt_tokens < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"max_prompt_tokens={self.max_prompt_tokens} and max_new_tokens={self.max_new_tokens} must each be at "
                "least 1"
            )
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must not be negative; 0 decodes greedily")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1, or null for every row")

    def prepare(self, model: Path, inputs: Workspace) -> None:
        """Refuse unreadable rows before the model is loaded."""
        self.examples(inputs)

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per row: numerator its score in [0, 1], denominator 1."""
        from pipeline.evaluation.model.generation import LocalGenerator

        return self.measure(LocalGenerator(model, tokenizer, inputs.progress), inputs)

    def measure(self, generator: Speaker, inputs: Workspace) -> Outcome:
        """As `run`, with answers from anything that continues tokens."""
        from pipeline.evaluation.model.generation import occurrences, prompt_room, row_seed
        from pipeline.evaluation.model.replies import Turn, end_tokens, require_template

        room = min(prompt_room(generator.window, self.max_new_tokens), self.max_prompt_tokens)
        examples = self.examples(inputs)
        encoder, prompts = require_template(generator.tokenizer, self.template), [e.prompt for e in examples.values()]
        turns = [
            Turn(
                encoder.prompt([{"role": "user", "content": prompt}])[-room:],
                self.max_new_tokens,
                row_seed(self.seed, prompt, occurrence, 0),
            )
            for prompt, occurrence in zip(prompts, occurrences(prompts), strict=True)
        ]
        answers = generator.turns(turns, end_tokens(encoder), (), self.temperature, inputs.progress)
        return self.judge(examples, [answer.text for answer in answers])

    def examples(self, inputs: Workspace) -> dict[int, Example]:
        """The rows that are scored, by their number. Raises ValueError if there is none, or one is none of TRACE's."""
        rows = every_row(self.rows, inputs, f"TRACE's {self.task}")
        if not rows:
            raise ValueError(f"TRACE's {self.task}: its test file holds no row; correct its path")
        for number, row in enumerate(rows):
            if not all(isinstance(row.get(key), str) for key in Example._fields):
                raise ValueError(
                    f"TRACE's {self.task}: row {number} must have prompt and answer, both text; it has "
                    f"{ {str(key): type(value).__name__ for key, value in row.items()} }"
                )
        return {i: Example(asked(rows[i]["prompt"]), rows[i]["answer"]) for i in smallest_hashes(rows, self.limit)}

    def judge(self, examples: dict[int, Example], answers: Sequence[str]) -> Outcome:
        """The outcome of these answers, however they came to be."""
        metric, scorer = TASKS[self.task]
        items = tuple(
            Item(
                str(number),
                content_hash(*example),
                scorer(answer, example, self.faithful),
                1.0,
                "",
                example.prompt,
                answer,
                example.answer,
            )
            for (number, example), answer in zip(examples.items(), answers, strict=True)
        )
        return Outcome(metric, True, items)
