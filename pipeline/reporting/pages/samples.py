"""What every model wrote after the same prompts, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.reporting.compare import Comparison, ModelResult

MAX_MODELS = 4


@dataclass(frozen=True)
class Written:
    """One prompt, and (model's label, text) of those that continued it."""

    prompt: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Samples:
    """The texts of one benchmark. `notes` say what is missing, and of which model."""

    title: str
    note: str
    written: tuple[Written, ...]
    notes: tuple[str, ...]


def samples(comparison: Comparison) -> list[Samples]:
    """The texts of each benchmark that only shows some.

    Shown are each variant's base and the model that it ends with, the first few where there are many.
    """
    lines = _shown(comparison)
    found = []
    for benchmark in comparison.collection.benchmarks:
        told = [(line, line.row.written[benchmark.name]) for line in lines if benchmark.name in line.row.written]
        prompts = dict.fromkeys(prompt for _, texts in told for prompt in texts)
        written = [
            Written(prompt, tuple((line.label, texts[prompt]) for line, texts in told if prompt in texts))
            for prompt in prompts
        ]
        notes = [f"{line.label}: {note}" for line, _ in told for note in line.row.notes.get(benchmark.name, ())]
        if written:
            found.append(Samples(benchmark.title, benchmark.note, tuple(written), tuple(notes)))
    return found


def _shown(comparison: Comparison) -> list[ModelResult]:
    ends = [(variant, comparison.last_line(variant)) for variant in comparison.collection.variants]
    pairs = [(comparison.line(variant.name, str(last.row.reference)), last) for variant, last in ends if last]
    lines = {line.label: line for pair in pairs for line in pair if line is not None}
    return list(lines.values() or comparison.lines)[:MAX_MODELS]
