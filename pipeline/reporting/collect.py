"""Reads what the stages left in their artifact directories into plain values. Computes nothing, loads no weights."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.records.curves import Curve, read_curve
from pipeline.records.diagnosis import Diagnosis
from pipeline.records.items import NUM_WRITTEN, Items, read_items, read_texts
from pipeline.reporting.facts import Facts, model_directory, read_facts
from pipeline.reporting.stack import Stack, read_stack

PROGRAM = ("python", "-m", "pipeline")
GROUPS = ("domain", "drift", "general", "retention", "samples")


@dataclass(frozen=True)
class Benchmark:
    """A measure and what it stands for: `domain`, `general` text, `retention` of what the base could do, `drift`:
    how far a model moved from its base, which is neither gain nor loss, or `samples`: texts to read, not scored.
    `gold_of`: the benchmark whose right answers this is the loss of, "" for a benchmark itself."""

    name: str
    title: str
    group: str
    note: str = ""
    gold_of: str = ""


@dataclass(frozen=True)
class DiagnosedModel(Diagnosis):
    """A diagnosis, and the items of the whole model."""

    items: Items


@dataclass(frozen=True)
class Provenance:
    """Where an artifact came from, as its manifest tells it; missing entries are empty."""

    stage: str
    label: str
    fingerprint: str
    directory: str
    git: str
    command: str
    packages: str
    host: str
    started: str
    wall_time_s: float | None


@dataclass(frozen=True)
class Model:
    """One model of one variant with everything known about it. `model` and `training` are artifact directories.

    `stage` made it from `parents` (role -> name); `reference` names the model that it is compared with, if any;
    `is_exact`: every step from there to it was shown to change nothing when it was made. `diagnoses` are the
    evaluations that look into a model instead of comparing it with others; `stack` is that of an expanded model;
    `notes` must be read with the scores; `directories` are those of the evaluations. `with_gold` are the benchmarks
    whose right answers have a loss: it is among the evaluations by `gold_name`, unless this model's could not be had.
    `taken_over`: the benchmarks whose scores are the parent's, which computes the same. `written`: benchmark -> prompt
    -> what the model wrote, of those that only show texts. `task`: the benchmark of what it learned in a sequence.
    """

    name: str
    variant: str
    model: Path
    fingerprint: str
    training: Path | None
    facts: Facts
    curve: Curve | None
    evaluations: dict[str, Items]
    stage: str = ""
    parents: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    is_exact: bool = False
    diagnoses: dict[str, DiagnosedModel] = field(default_factory=dict)
    stack: Stack | None = None
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    directories: dict[str, Path] = field(default_factory=dict)
    with_gold: frozenset[str] = frozenset()
    taken_over: frozenset[str] = frozenset()
    written: dict[str, dict[str, str]] = field(default_factory=dict)
    task: str | None = None


@dataclass(frozen=True)
class Variant:
    """One configuration of a sweep, or the only one of a single run: its models, parents before what came of them.

    `is_reference`: it is the method as it is configured, against which the others are judged.
    """

    name: str
    rows: tuple[Model, ...]
    is_reference: bool = False

    def reference_of(self, row: Model) -> Model | None:
        """The model that a row is compared with."""
        return None if row.reference is None else self.row(row.reference)

    def row(self, name: str) -> Model | None:
        return next((row for row in self.rows if row.name == name), None)

    def is_random(self, row: Model) -> bool:
        """Whether a model's weights were drawn, or made from such, and no training has taught them anything."""
        parents = (self.row(name) for name in row.parents.values())
        untaught = row.training is None and any(self.is_random(one) for one in parents if one is not None)
        return row.facts.is_random or untaught


@dataclass(frozen=True)
class Collection:
    name: str
    variants: tuple[Variant, ...]
    benchmarks: tuple[Benchmark, ...]
    provenance: tuple[Provenance, ...]

    @property
    def has_random_base(self) -> bool:
        """Whether some model is compared with one whose weights were drawn and never trained."""
        return any(
            (base := variant.reference_of(row)) is not None and variant.is_random(base)
            for variant in self.variants
            for row in variant.rows
        )


def collect(
    name: str,
    variants: list[dict[str, Any]],
    benchmarks: Mapping[str, Mapping[str, str]],
    inputs: Mapping[str, Path],
) -> Collection:
    """Read all artifacts that `variants` names by role; `inputs` maps roles to directories.

    Raises:
        ValueError: naming the directory, if an artifact lacks a file or a file does not hold what it should.
    """
    reader = _Reader(inputs)
    read = tuple(_read_variant(variant, reader) for variant in variants)
    have_gold = {b for variant in read for row in variant.rows for b in row.with_gold}
    described = []
    for key, b in benchmarks.items():
        described.append(Benchmark(key, b["title"], b["group"], b.get("note") or ""))
        if key in have_gold:
            described.append(Benchmark(gold_name(key), f"{b['title']}, gold answer", b["group"], gold_of=key))
    described.sort(key=lambda b: GROUPS.index(b.group))
    places = sorted(set(map(Path, inputs.values())))
    return Collection(name, read, tuple(described), tuple(_provenance(d.name, reader.manifest(d)) for d in places))


def gold_name(benchmark: str) -> str:
    """The name of the measure of a benchmark's right answers: their loss in bits per byte."""
    return f"{benchmark}.gold"


class _Reader:
    """Reads each artifact once, however many variants share it."""

    def __init__(self, inputs: Mapping[str, Path]) -> None:
        self._inputs = inputs
        self._items: dict[Path, Items] = {}
        self._manifests: dict[Path, dict[str, Any]] = {}

    def directory(self, role: str) -> Path:
        if role not in self._inputs:
            raise ValueError(f"the role {role!r} is not among the report's {len(self._inputs)} inputs")
        return Path(self._inputs[role])

    def items(self, role: str) -> Items:
        directory = self.directory(role)
        if directory not in self._items:
            self._items[directory] = read_items(directory)
        return self._items[directory]

    def manifest(self, directory: Path) -> dict[str, Any]:
        if directory not in self._manifests:
            self._manifests[directory] = read_manifest(directory)
        return self._manifests[directory]


def _read_variant(variant: dict[str, Any], reader: _Reader) -> Variant:
    rows: dict[str, Model] = {}
    for model in variant["models"]:
        rows[model["name"]] = _read_row(model, variant["variant"], reader, rows)
    return Variant(variant["variant"], tuple(rows.values()), variant.get("is_reference", False))


def _read_row(row: dict[str, Any], variant: str, reader: _Reader, earlier: Mapping[str, Model]) -> Model:
    model = reader.directory(row["model"])
    manifest = reader.manifest(model)
    training = model if "num_trainable" in (manifest.get("metrics") or {}) else None
    facts = read_facts(model, manifest, manifest if training else None)
    parent = next(iter(row["parents"].values()), None)
    above = parent == row["reference"] or (parent is not None and earlier[parent].is_exact)
    found = {benchmark: reader.items(role) for benchmark, role in row["evaluations"].items()}
    diagnosed = {b: items for b, items in found.items() if items.diagnosis is not None}
    diagnoses = {b: DiagnosedModel(**vars(items.diagnosis), items=items) for b, items in diagnosed.items()}
    golds = {gold_name(b): items.gold for b, items in found.items() if items.gold is not None}
    directories = {b: reader.directory(role) for b, role in row["evaluations"].items()}
    metrics = {b: reader.manifest(directory).get("metrics") or {} for b, directory in directories.items()}
    written = {b: _written(items, directories[b]) for b, items in found.items() if items.metric == NUM_WRITTEN}
    return Model(
        name=row["name"],
        variant=variant,
        model=model,
        fingerprint=str(manifest.get("fingerprint", "")),
        training=training,
        facts=facts,
        curve=read_curve(training) if training else None,
        evaluations={b: items for b, items in found.items() if b not in diagnoses | written} | golds,
        diagnoses=diagnoses,
        stack=read_stack(model_directory(model, manifest)) if facts.max_abs_difference is not None else None,
        notes={b: items.notes for b, items in found.items() if items.notes},
        directories=directories,
        written=written,
        task=row.get("task"),
        stage=str(manifest.get("stage", "")),
        parents=dict(row["parents"]),
        reference=row["reference"],
        is_exact=parent is not None and above and facts.max_abs_difference == 0,
        taken_over=frozenset(b for b, found in metrics.items() if found.get("taken_over")),
        with_gold=frozenset(b for b, items in found.items() if items.gold is not None or items.lacks_gold),
    )


def _written(items: Items, directory: Path) -> dict[str, str]:
    texts = read_texts(directory, items.ids)
    return {texts[name].prompt: texts[name].answer for name in items.ids if name in texts}


def read_manifest(directory: Path) -> dict[str, Any]:
    """The artifact's manifest. Raises ValueError if it is missing or is not a JSON object."""
    path = directory / "manifest.json"
    if not path.is_file():
        raise ValueError(f"the artifact {directory} has no {path.name}; rerun the stage that writes it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); rerun the stage that wrote it") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{directory}/manifest.json is not a JSON object; rerun the stage that wrote it")
    return manifest


def _provenance(directory: str, manifest: Mapping[str, Any]) -> Provenance:
    source = manifest.get("provenance") or {}
    wall_time = source.get("wall_time_s")
    argv = source.get("argv")
    return Provenance(
        stage=str(manifest.get("stage", "")),
        label=str(manifest.get("label", "")),
        fingerprint=str(manifest.get("fingerprint", "")),
        directory=directory,
        git=_commit(source.get("git")),
        command=_command(argv) if isinstance(argv, list) else _flat(argv),
        packages=_flat(source.get("packages")),
        host=_flat(source.get("host")),
        started=_flat(source.get("started")),
        wall_time_s=float(wall_time) if wall_time is not None else None,
    )


def _command(argv: list[Any]) -> str:
    """For a shell; a module that was run with -m is recorded by its file."""
    first, *words = map(str, argv)
    return shlex.join([*(PROGRAM if first.endswith("__main__.py") else [first]), *words])


def _commit(git: Any) -> str:
    if not isinstance(git, Mapping):
        return _flat(git)
    return f"{git.get('commit', '')} with uncommitted changes" if git.get("dirty") else str(git.get("commit", ""))


def _flat(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items() if item is not None)
    return ", ".join(map(_flat, value)) if isinstance(value, list) else str(value)
