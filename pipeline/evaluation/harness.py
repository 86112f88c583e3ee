"""Tasks of lm-evaluation-harness: its own definition, prompts, few-shot rule and metric, on rows from any source.

The definition is read from the installed `lm_eval` and extended by an `include`, which is how lm-evaluation-harness
documents variants of a task; nothing of it is repeated here. Only the data set is replaced, when `splits` names rows of
its own (package archives and local mirrors work without a network).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.documents import RowSource
from pipeline.data.formats import Row
from pipeline.evaluation.base import Inputs, Item, Outcome, content_hash
from pipeline.evaluation.rows import ADAPTERS, Rows
from pipeline.evaluation.samples import sample_texts

FEWSHOT_SEED = 1234  # lm-evaluation-harness' own default


@dataclass(frozen=True)
class HarnessTask:
    """One task of lm-evaluation-harness.

    Attributes:
        task: its definition file below `lm_eval/tasks`, without `.yaml`: "arc/arc_easy".
        metric: the metric of the task to report: "acc", "acc_norm" (length-normalised), or "perplexity", which is
            reported as its logarithm in nats per item, the form that can be paired over items.
        num_fewshot: examples in the prompt; null keeps the task's own number.
        limit: score so many documents, those with the smallest content hashes: the same ones for every model and
            machine, and no prefix of a sorted file. null scores all.
        splits: where the rows of each split come from; null lets lm-evaluation-harness load its own data set from the
            hub at `revision`.
        adapter: how rows of `splits` are brought to the hub's columns ("none", "olmes_choice", "olmes_lambada").
        revision: commit of the hub data set; required when `splits` is null.
    """

    task: str
    metric: str
    num_fewshot: int | None
    limit: int | None
    splits: Mapping[str, RowSource] | None
    adapter: str
    revision: str | None

    def __post_init__(self) -> None:
        if self.adapter not in ADAPTERS:
            raise ValueError(f"adapter={self.adapter!r} is not known; use one of {', '.join(ADAPTERS)}")
        if self.splits is None and not self.revision:
            raise ValueError(f"{self.task}: splits is null, so give `revision`, a commit of the task's hub data set")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"{self.task}: limit={self.limit} must be at least 1, or null for every document")

    def run(self, model: Any, tokenizer: Any, inputs: Inputs) -> Outcome:
        """One item per document: numerator 1 or 0 (nats for perplexity), denominator 1."""
        from lm_eval.evaluator import evaluate

        from pipeline.evaluation.loglikelihood import SharedPrefixLM

        task, numbers = self.load_task(inputs)
        lm = SharedPrefixLM(model, tokenizer, inputs.progress)
        results = evaluate(lm=lm, task_dict={"tasks": {task.task_name: task}}, bootstrap_iters=0)
        samples = sorted(results["samples"][task.task_name], key=lambda sample: sample["doc_id"])
        if len(samples) != len(numbers):  # the task's own `process_docs` leaves some rows out
            numbers = list(range(len(samples)))
        items = [self._item(number, sample) for number, sample in zip(numbers, samples, strict=True)]
        is_perplexity = self.metric == "perplexity"
        return Outcome("log_perplexity" if is_perplexity else self.metric, not is_perplexity, tuple(items))

    def load_task(self, inputs: Inputs) -> tuple[Any, list[int]]:
        """The harness' task, cut to the chosen rows, and the numbers of those rows in the full split.

        Raises ValueError for an unknown task or metric, and for a split that is needed and not given.
        """
        official = _definition(self.task)
        fields = _plain_fields(official)
        scored = fields.get("test_split") or fields["validation_split"]
        variant: dict[str, Any] = {"include": str(official), "task": fields["task"]}
        if self.num_fewshot is not None:
            variant["num_fewshot"] = self.num_fewshot
        if self.splits is None:
            variant["dataset_kwargs"] = {**(fields.get("dataset_kwargs") or {}), "revision": self.revision}
            task = _load(variant)
            numbers = smallest_hashes(task.dataset[scored], self.limit)
            task.dataset[scored] = task.dataset[scored].select(numbers)
        else:
            variant |= self._absent_splits(fields, scored)
            rows = {split: ADAPTERS[self.adapter](_fields(origin, inputs)) for split, origin in self.splits.items()}
            numbers = smallest_hashes(rows[scored], self.limit)
            task = _load(variant, rows | {scored: [rows[scored][number] for number in numbers]})
        if self.metric not in task.aggregation():
            raise ValueError(f"{self.task} has no metric {self.metric!r}; it has {', '.join(task.aggregation())}")
        task.set_fewshot_seed(FEWSHOT_SEED)
        return task, numbers

    def _absent_splits(self, fields: Mapping[str, Any], scored: str) -> dict[str, None]:
        """The official splits that `splits` leaves out, set to null. Raises ValueError if one of them is needed."""
        given = set(self.splits or {})
        examples = fields.get("fewshot_split") or fields.get("training_split") or fields.get("validation_split")
        shots = self.num_fewshot if self.num_fewshot is not None else fields.get("num_fewshot") or 0
        if missing := ({scored} | ({examples} if shots else set())) - given:
            raise ValueError(
                f"{self.task} with {shots} examples needs the splits {sorted(map(str, missing))} too; `splits` has "
                f"{sorted(given)}. Add them, set num_fewshot=0, or set splits=null to load the task's own from the hub"
            )
        kinds = ("training_split", "validation_split", "test_split", "fewshot_split")
        return {kind: None for kind in kinds if fields.get(kind) and fields[kind] not in given}

    def _item(self, number: int, sample: Mapping[str, Any]) -> Item:
        value = float(sample[self.metric])
        # What the model was given and what counts as right: equal for any source of the same content.
        digest = content_hash(sample["arguments"], sample["target"])
        numerator = -value if self.metric == "perplexity" else value
        prompt, answer, gold = sample_texts(sample, self.metric)
        return Item(str(number), digest, numerator, 1.0, prompt=prompt, answer=answer, gold=gold)


def _load(variant: Mapping[str, Any], rows: Mapping[str, Rows] | None = None) -> Any:
    """The task of a definition; with `rows`, its data set is those, by split."""
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as scratch:
        definition = dict(variant)
        if rows is not None:
            data_files = {split: str(Path(scratch) / f"{split}.jsonl") for split in rows}
            for split, path in data_files.items():
                Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows[split]), encoding="utf-8")
            kwargs = {"data_files": data_files, "cache_dir": f"{scratch}/cache", "keep_in_memory": True}
            definition |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}
        (Path(scratch) / "task.yaml").write_text(json.dumps(definition))  # JSON is YAML
        manager = TaskManager(include_path=scratch, include_defaults=False)
        return manager.load([definition["task"]])["tasks"][definition["task"]]


def smallest_hashes(rows: Iterable[Mapping[str, Any]], limit: int | None) -> list[int]:
    """Numbers, ascending, of the `limit` rows with the smallest content hashes; of all rows if `limit` is None."""
    if limit is None:
        return [number for number, _ in enumerate(rows)]
    hashes = [(content_hash(row), number) for number, row in enumerate(rows)]
    return sorted(number for _, number in sorted(hashes)[:limit])


def _fields(origin: RowSource, inputs: Inputs) -> Rows:
    rows = list(origin.rows(inputs.locate, inputs.listing))
    for row in rows:
        if not isinstance(row, Row):
            raise ValueError(f"benchmark row {row.id} is {row.reason}; a benchmark needs every one of its rows")
    return [dict(row.fields) for row in rows if isinstance(row, Row)]


def _definition(task: str) -> Path:
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    path = root / f"{task}.yaml"
    if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        folder = path.parent if path.parent.is_dir() else root
        near = sorted(p.relative_to(root).with_suffix("").as_posix() for p in folder.glob("*.yaml"))[:8]
        raise ValueError(f"lm_eval has no task file {task}.yaml; near it are {', '.join(near) or 'none'}")
    return path


def _plain_fields(path: Path) -> dict[str, Any]:
    """The fields of a task definition with its includes, functions left out."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    fields = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    includes = fields.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        merged |= _plain_fields(path.parent / name)
    return merged | fields
