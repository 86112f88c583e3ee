"""Tasks of lm-evaluation-harness: its own definition, prompts, few-shot rule and metric, on rows from any source.

The definition is read from the installed `lm_eval` and extended by an `include`, which is how lm-evaluation-harness
documents variants of a task; nothing of it is repeated here. Only the data set is replaced, when `splits` names rows of
its own (package archives and local mirrors work without a network).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pipeline.data.sources.documents import RowSource
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, smallest_hashes
from pipeline.evaluation.tasks import definitions
from pipeline.evaluation.tasks.gold import UnscoredError, gold_losses
from pipeline.evaluation.tasks.rows import ADAPTERS, Absent, Rows, read_rows
from pipeline.evaluation.tasks.samples import sample_texts
from pipeline.evaluation.tasks.variants import Variant, load
from pipeline.ranges import NOT_NEGATIVE, Range, check_ranges
from pipeline.records.gold import GoldLoss

FEWSHOT_SEED = 1234  # lm-evaluation-harness' own default
AVERAGES = ("documents", "tasks")

Samples = Sequence[Mapping[str, Any]]
Golds = Sequence[GoldLoss | None]
Notes = tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """A task of lm-evaluation-harness ready to be scored.

    Attributes:
        task: lm-evaluation-harness' own object.
        numbers: of the chosen rows in the full split, in the order in which they are scored.
        category: what tells a subtask from its siblings, such as an MMLU subject; "" if there are none.
        is_cut: whether the task holds the chosen rows alone; if not, they are picked by number.
    """

    task: Any
    numbers: list[int]
    category: str
    is_cut: bool = True


class Chosen(NamedTuple):
    """A task to be loaded, and the numbers and category that `Loaded` has of it."""

    variant: Variant
    numbers: list[int]
    category: str


@dataclass(frozen=True)
class HarnessTask:
    """One task of lm-evaluation-harness, or the subtasks of one pattern.

    Attributes:
        task: its definition file below `lm_eval/tasks`, without `.yaml`: "arc/arc_easy". A column of the rows in
            braces means one subtask for each of its values: "mmlu/default/mmlu_{subject}".
        metric: the metric of the task to report: "acc", "acc_norm" (length-normalised), "exact_match", or
            "perplexity", which is reported as its logarithm in nats per item, the form that can be paired over items.
        filter: how the answer is read out of what was generated, a name of the task's `filter_list`; null where the
            task has one way only.
        num_fewshot: examples in the prompt; null keeps the task's own number.
        until: texts that end a generated answer; null keeps the task's own.
        average: "documents" counts every document once, as lm-evaluation-harness does for its groups; "tasks" is the
            mean of the subtasks' scores, as the Open LLM Leaderboard reports MMLU.
        limit: documents to score, those with the smallest content hashes: the same ones for every model and
            machine, and no prefix of a sorted file. null scores all.
        splits: where the rows of each split come from; null lets lm-evaluation-harness load its own data set from the
            hub at `revision`.
        adapter: how rows of `splits` are brought to the hub's columns ("none", "olmes_choice", "olmes_lambada",
            "olmes_generate").
        revision: commit of the hub data set; required when `splits` is null.
    """

    task: str
    metric: str
    filter: str | None
    num_fewshot: int | None
    until: Sequence[str] | None
    average: str
    limit: int | None
    splits: Mapping[str, RowSource] | None
    adapter: str
    revision: str | None
    scores_gold: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.adapter not in ADAPTERS:
            raise ValueError(f"adapter={self.adapter!r} is not known; use one of {', '.join(ADAPTERS)}")
        if self.average not in AVERAGES:
            raise ValueError(f"average={self.average!r} is not known; use one of {', '.join(AVERAGES)}")
        if self.splits is None and not self.revision:
            raise ValueError(f"{self.task}: splits is null, so give `revision`, a commit of the task's hub data set")
        check_ranges(vars(self), {"limit": Range(1, hint="or null for every document"), "num_fewshot": NOT_NEGATIVE})
        self._check_against(self._fields())

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per document: its metric as numerator, denominator 1 (or its weight, see `average`).

        Beside it the loss of the right answer (`pipeline.evaluation.tasks.gold`).
        """
        from pipeline.evaluation.tasks.loglikelihood import SharedPrefixLM

        return self.score(SharedPrefixLM(model, tokenizer, inputs.progress), inputs)

    def score(self, lm: Any, inputs: Workspace) -> Outcome:
        """As `run`, with any model object of lm-evaluation-harness."""
        from lm_eval.evaluator import evaluate

        loaded = self.load_tasks(inputs)
        tasks = {one.task.task_name: one.task for one in loaded}
        numbers = {one.task.task_name: one.numbers for one in loaded if not one.is_cut}
        found = evaluate(lm=lm, task_dict={"tasks": tasks}, bootstrap_iters=0, samples=numbers or None)["samples"]
        samples = [self._of_filter(found[one.task.task_name]) for one in loaded]
        golds, notes = self._golds(lm, loaded, samples)
        items = [item for parts in zip(loaded, samples, golds, strict=True) for item in self._items(*parts)]
        is_perplexity = self.metric == "perplexity"
        metric = "log_perplexity" if is_perplexity else self.metric
        return Outcome(metric, not is_perplexity, tuple(self._weighted(items)), notes, lacks_gold=bool(notes))

    def load_tasks(self, inputs: Workspace) -> list[Loaded]:
        """The harness' tasks with the chosen rows; a subtask none of whose rows is chosen is left out.

        Raises:
            ValueError: rows are unavailable, a split that is needed holds none, or a subtask has none.
        """
        if self.splits is None:
            return self._hub_tasks()
        chosen = self.chosen(inputs)
        tasks = self._ready(load([one.variant for one in chosen]))
        is_cut = definitions.scored_split(self._fields()) != self._example_split()
        return [Loaded(task, one.numbers, one.category, is_cut) for task, one in zip(tasks, chosen, strict=True)]

    def chosen(self, inputs: Workspace) -> list[Chosen]:
        """What is to be loaded of each subtask with a chosen row.

        The rows of a variant are the chosen ones, unless examples come from the split that is scored.
        """
        scored, examples = definitions.scored_split(self._fields()), self._example_split()
        splits = dict.fromkeys((scored, examples or scored))
        rows = {split: self._rows(split, inputs) for split in splits}
        kept = set(smallest_hashes(rows[scored], self.limit))
        found = []
        for value, path in definitions.subtasks(self.task).items():
            parts = {split: self._part(split, rows[split], value) for split in splits}
            numbers = [place for place, number in enumerate(parts[scored]) if number in kept]
            if numbers:
                picked = {split: [rows[split][number] for number in part] for split, part in parts.items()}
                if scored != examples:
                    picked[scored] = [picked[scored][place] for place in numbers]
                found.append(Chosen(Variant(path, self._changes(), picked), numbers, value))
        return found

    def _hub_tasks(self) -> list[Loaded]:
        """Tasks over the data sets that lm-evaluation-harness loads itself."""
        paths = definitions.subtasks(self.task)
        tasks = self._ready(load([Variant(path, self._changes(), None, self.revision) for path in paths.values()]))
        scored = definitions.scored_split(self._fields())
        pools = [[(content_hash(row), place) for place, row in enumerate(task.dataset[scored])] for task in tasks]
        kept = set(sorted((pair, i) for i, pool in enumerate(pools) for pair in pool)[: self.limit])
        loaded = []
        for i, (value, task) in enumerate(zip(paths, tasks, strict=True)):
            if numbers := [place for digest, place in pools[i] if ((digest, place), i) in kept]:
                is_cut = scored != self._example_split()
                if is_cut:
                    task.dataset[scored] = task.dataset[scored].select(numbers)
                loaded.append(Loaded(task, numbers, value, is_cut))
        return loaded

    def _fields(self) -> dict[str, Any]:
        return definitions.fields(next(iter(definitions.subtasks(self.task).values())))

    def _shots(self) -> int:
        own = self._fields().get("num_fewshot") or 0
        return own if self.num_fewshot is None else self.num_fewshot

    def _example_split(self) -> str | None:
        return definitions.example_split(self._fields()) if self._shots() else None

    def _changes(self) -> dict[str, Any]:
        """What differs from the official definition, beside the data."""
        changes: dict[str, Any] = {} if self.num_fewshot is None else {"num_fewshot": self.num_fewshot}
        if self.until is not None:
            changes["generation_kwargs"] = {**self._fields()["generation_kwargs"], "until": list(self.until)}
        return changes

    def _check_against(self, fields: Mapping[str, Any]) -> None:
        """Raise ValueError for what the definition shows to be wrong; nothing is loaded for it."""
        if self.metric not in (known := definitions.metrics(fields)):
            raise ValueError(f"{self.task} has no metric {self.metric!r}; it has {', '.join(known)}")
        ways = definitions.filters(fields)
        if self.filter not in ways and (self.filter is not None or len(ways) > 1):
            raise ValueError(f"{self.task}: filter={self.filter!r} is not one of its own; use {' or '.join(ways)}")
        if self.until is not None and "generation_kwargs" not in fields:
            raise ValueError(f"{self.task} generates nothing, so `until` has no effect; set it to null")
        if self.splits is None:
            return
        needed = {definitions.scored_split(fields), self._example_split()} - {None}
        if missing := needed - set(self.splits):
            raise ValueError(
                f"{self.task} with {self._shots()} examples needs the splits {sorted(map(str, missing))} too; `splits` "
                f"has {sorted(self.splits)}. Add them, set num_fewshot=0, or set splits=null to load the task's own "
                "from the hub"
            )
        for split in sorted(map(str, needed)):
            if isinstance(origin := self.splits[split], Absent):
                raise ValueError(f"{self.task}: the split {split!r} is needed; {origin.advice()}")

    def _rows(self, split: str, inputs: Workspace) -> Rows:
        rows = ADAPTERS[self.adapter](read_rows((self.splits or {})[split], inputs))
        if not rows:
            raise ValueError(f"{self.task}: the split {split!r} holds no row; at least one is required, so look at it")
        if (key := definitions.column(self.task)) and (unknown := {str(row.get(key)) for row in rows} - self._values()):
            raise ValueError(
                f"{self.task}: rows of {split!r} have {key}={min(unknown)!r}, which lm_eval has no task for"
            )
        return rows

    def _values(self) -> set[str]:
        return set(definitions.subtasks(self.task))

    def _part(self, split: str, rows: Rows, value: str) -> list[int]:
        """Numbers of the rows of one subtask; of all rows if the task is no pattern."""
        key = definitions.column(self.task)
        part = [number for number, row in enumerate(rows) if key is None or row[key] == value]
        needed = 1 if split == definitions.scored_split(self._fields()) else self._shots()
        if len(part) < needed:
            what = f" with {key}={value!r}" if key else ""
            raise ValueError(f"{self.task}: the split {split!r} holds {len(part)} rows{what}, {needed} are required")
        return part

    def _ready(self, tasks: Sequence[Any]) -> list[Any]:
        for task in tasks:
            task.set_fewshot_seed(FEWSHOT_SEED)
        return list(tasks)

    def _of_filter(self, samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return sorted((s for s in samples if s["filter"] == (self.filter or "none")), key=lambda s: s["doc_id"])

    def _golds(self, lm: Any, loaded: Sequence[Loaded], samples: Sequence[Samples]) -> tuple[list[Golds], Notes]:
        try:
            parts = zip(loaded, samples, strict=True)
            return [gold_losses(lm, one.task, found, self.metric) for one, found in parts], ()
        except UnscoredError as error:
            return [[None] * len(found) for found in samples], (str(error),)

    def _items(self, one: Loaded, samples: Samples, golds: Golds) -> list[Item]:
        numbers = one.numbers
        if len(samples) != len(numbers):  # the task's own `process_docs` leaves some rows out
            numbers = [sample["doc_id"] for sample in samples]
        return [self._item(one, *parts) for parts in zip(numbers, samples, golds, strict=True)]

    def _item(self, one: Loaded, number: int, sample: Mapping[str, Any], gold: GoldLoss | None) -> Item:
        value = float(sample[self.metric])
        # What the model was given, what counts as right and how that is judged: equal for any source of the same
        # content, different as soon as the task's version, metric or way to read an answer is.
        digest = content_hash(sample["arguments"], sample["target"], self.metric, self.filter, str(one.task.VERSION))
        value = -value if self.metric == "perplexity" else value
        name = f"{one.category}/{number}" if one.category else str(number)
        texts = sample_texts(sample, self.metric)
        return Item(name, digest, value, 1.0, one.category, *texts, gold_loss=gold)

    def _weighted(self, items: Sequence[Item]) -> list[Item]:
        """With average=tasks, weights by which every subtask counts the same; they are 1 on average."""
        sizes = Counter(item.category for item in items)
        if self.average == "documents" or len(sizes) == 1:
            return list(items)
        weights = {category: len(items) / (len(sizes) * size) for category, size in sizes.items()}
        return [
            Item(**{**vars(item), "numerator": item.numerator * weight, "denominator": weight})
            for item in items
            for weight in (weights[item.category],)
        ]
