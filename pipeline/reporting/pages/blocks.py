"""The report's sections on blocks: what each expansion built, and what every new block does in each diagnosed model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.records.diagnosis import DiagnosedBlock, Diagnosis, Removal
from pipeline.reporting.collect import Benchmark, DiagnosedModel
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.figures.blocks_figure import diagnosis_figure
from pipeline.reporting.figures.plot import Plot, save
from pipeline.reporting.figures.stack_figure import stack_figure
from pipeline.reporting.pages.page import FEW_ITEMS, Section
from pipeline.reporting.plain import plain
from pipeline.reporting.stack import ASSUMPTION, Stack, cost_rows
from pipeline.reporting.tables.table import Column, Entry, Table
from pipeline.reporting.tables.wording import MISSING, interval, listing, number, percent, span

BITS = "bits per byte"
MAX_OPEN = 4  # with more diagnosed models than this their sections are folded


def block_sections(comparison: Comparison, directory: Path) -> list[Section]:
    """One section per expanded model, then one per model whose blocks were diagnosed; figures go to `directory`."""
    names = _file_names("stack")
    sections = [
        _stack_section(line, line.row.stack, directory, next(names))
        for line in comparison.lines
        if line.row.stack is not None
    ]
    names, diagnosed = _file_names("blocks"), list(_diagnosed(comparison))
    for line, benchmark in diagnosed:
        title, base = f"{benchmark.title}: {line.label}", _base_of(comparison, line, benchmark.name)
        section = _diagnosis_section(line, title, line.row.diagnoses[benchmark.name], base, directory, names)
        sections.append(replace(section, is_open=section.in_text and len(diagnosed) <= MAX_OPEN))
    return sections


def _file_names(kind: str) -> Iterator[str]:
    return (kind if i == 1 else f"{kind}-{i}" for i in itertools.count(1))


def _diagnosed(comparison: Comparison) -> Iterator[tuple[ModelResult, Benchmark]]:
    """The models that have new blocks, by benchmark."""
    for benchmark in comparison.collection.benchmarks:
        for line in comparison.lines:
            found = line.row.diagnoses.get(benchmark.name)
            if found is not None and found.blocks:
                yield line, benchmark


def _base_of(comparison: Comparison, line: ModelResult, benchmark: str) -> DiagnosedModel | None:
    base = comparison.reference(line)
    return base.row.diagnoses.get(benchmark) if base is not None else None


def _stack_section(line: ModelResult, stack: Stack, directory: Path, name: str) -> Section:
    sources = "; ".join(f"block {block.position} from block {block.origin}" for block in stack.new)
    alt = f"The stack of {stack.summary} {sources or 'No block is new'}."
    caption = "From the embeddings (left) to the head (right); new blocks by their position."
    plot = Plot(save(stack_figure(stack), directory, name), "", alt, caption)
    columns = (Column("", "New blocks" if stack.new else "New"), Column("", "Everything"))
    rows = tuple(
        (what[0].upper() + what[1:], (Entry(new), Entry(everything))) for what, new, everything in cost_rows(stack)
    )
    table = Table("What training would hold", columns, rows, "Cost")
    sentences = (stack.summary[0].upper() + stack.summary[1:], ASSUMPTION)
    return Section(f"Stack: {line.label}", sentences, plot, table, False, False, _stack_values(line, stack))


def _stack_values(line: ModelResult, stack: Stack) -> dict[str, Any]:
    return {
        "model": line.label,
        "num_blocks": len(stack.blocks),
        "num_parameters": stack.num_parameters,
        "num_new_parameters": stack.num_new,
        "new": [{"position": b.position, "origin": b.origin, "round": b.round, "group": b.group} for b in stack.new],
    }


def _diagnosis_section(
    line: ModelResult,
    title: str,
    diagnosis: DiagnosedModel,
    base: DiagnosedModel | None,
    directory: Path,
    names: Iterator[str],
) -> Section:
    values = _diagnosis_values(line, diagnosis)
    if diagnosis.is_untouched:
        sentence = (
            f"All {len(diagnosis.blocks)} new blocks still are exact identities: each one's output has the bits of its "
            "input, so leaving any of them out changes nothing."
        )
        return Section(title, (sentence,), None, diagnosis_table(diagnosis), False, False, values)
    alt = f"Relative update of every block, and the loss without each new one. {_blocks_in_words(diagnosis)}"
    caption = (
        "Above: mean over tokens of |block(x) − x| / |x|; old blocks are grey. Below: what leaving the block out "
        f"costs; bars are {percent(diagnosis.confidence)} intervals, paired over documents."
    )
    plot = Plot(save(diagnosis_figure(diagnosis), directory, next(names)), "", alt, caption)
    return Section(title, tuple(sentences(diagnosis, base)), plot, diagnosis_table(diagnosis), True, True, values)


def sentences(diagnosis: DiagnosedModel, base: DiagnosedModel | None) -> list[str]:
    """What the numbers say: candidates for dropping, all new blocks, the base, and how far this can be trusted."""
    found = [_candidates(diagnosis)]
    if diagnosis.without_all is not None:
        every = f"Without any of the {len(diagnosis.blocks)} new blocks the loss changes by"
        found.append(f"{every} {cost(diagnosis.without_all, diagnosis.confidence)}.{_against_base(diagnosis, base)}")
    n = len(diagnosis.items.ids)
    if n < FEW_ITEMS:
        found.append(f"Measured on {n} documents: with fewer than {FEW_ITEMS} the intervals are too narrow or missing.")
    return found


def _candidates(diagnosis: Diagnosis) -> str:
    names = [str(block.position) for block in diagnosis.blocks if block.is_candidate]
    rule = f"outside its {percent(diagnosis.confidence)} interval"
    if not names or diagnosis.without_candidates is None:
        return f"No new block is a candidate for dropping: the loss rises {rule} without any one of them."
    blocks = f"block {names[0]}" if len(names) == 1 else f"blocks {listing(names)}"
    joint = cost(diagnosis.without_candidates, diagnosis.confidence)
    together = "Without it" if len(names) == 1 else "Without all of these together"
    advice = ": more than any of them shows alone, so do not drop all" if diagnosis.without_candidates.low > 0 else ""
    return (
        f"Candidates for dropping: {blocks}. The loss does not rise {rule} when one of them is left out, which is no "
        f"proof that it does nothing. {together} the loss changes by {joint}{advice}."
    )


def _against_base(diagnosis: DiagnosedModel, base: DiagnosedModel | None) -> str:
    """Pure additions leave the base when they are taken away; anything else was changed by training."""
    left = diagnosis.without_all
    if (
        left is None
        or base is None
        or (base.items.ids, base.items.hashes) != (diagnosis.items.ids, diagnosis.items.hashes)
    ):
        return ""
    if np.array_equal(left.numerators, base.items.numerators):
        return " What is left has exactly the base's loss on every document: nothing but the new blocks changed."
    gap = float(np.sum(left.numerators) - base.items.numerators.sum()) / float(base.items.denominators.sum())
    return (
        f" What is left is not the base: its loss differs by {number(gap, 4, signed=True)} {BITS}, so more than the "
        "new blocks was trained."
    )


def cost(removal: Removal, confidence: float) -> str:
    """`+0.0123 bits per byte (95 % CI +0.0101 to +0.0145)`."""
    if removal.mark == "identical":
        return f"exactly 0 {BITS}"
    value = number(removal.value, 4, signed=True)
    if not math.isfinite(removal.low):
        return f"{value} {BITS} (one document, so no interval)"
    return f"{value} {BITS} ({span(removal, 4, confidence)})"


def diagnosis_table(diagnosis: DiagnosedModel) -> Table:
    """A row per new block, then all of them and all candidates together."""
    columns = (
        Column("", "From block"),
        Column("", "Round"),
        Column("", "Update", "of the stream"),
        Column("", "Loss without it", "bits/byte ↓", len(diagnosis.items.ids)),
        Column("", "Verdict"),
    )
    rows = [(f"block {block.position}", _entries(diagnosis, block)) for block in diagnosis.blocks]
    blank = Entry(MISSING)
    for label, removal in (
        ("all new blocks", diagnosis.without_all),
        ("all candidates", diagnosis.without_candidates),
    ):
        if removal is not None:
            rows.append((label, (blank, blank, blank, _cost_entry(removal), blank)))
    caption = f"New blocks, and the change of the loss without them [{percent(diagnosis.confidence)} interval]"
    return Table(caption, columns, tuple(rows), "Left out")


def _entries(diagnosis: Diagnosis, block: DiagnosedBlock) -> tuple[Entry, ...]:
    update = Entry("0") if block.is_identity else Entry(f"{diagnosis.updates[block.position] * 100:.2f} %")
    return (
        Entry(str(diagnosis.origins[block.position])),
        Entry(str(block.round)),
        update,
        _cost_entry(block.without),
        _verdict(block),
    )


def _cost_entry(removal: Removal) -> Entry:
    if removal.mark == "identical":
        return Entry("0", "identical")
    mark = removal.mark if math.isfinite(removal.low) else ""
    return Entry(number(removal.value, 4, signed=True), mark, interval(removal, 4))


def _verdict(block: DiagnosedBlock) -> Entry:
    if block.is_identity:
        return Entry("identity")
    if not math.isfinite(block.without.low):
        return Entry("", "unknown")
    return Entry("", "candidate" if block.is_candidate else "needed")


def _blocks_in_words(diagnosis: Diagnosis) -> str:
    parts = [
        f"block {b.position}: update {diagnosis.updates[b.position] * 100:.2f} %, without it "
        f"{number(b.without.value, 4, signed=True)}"
        for b in diagnosis.blocks
    ]
    return "; ".join(parts) + "."


def _diagnosis_values(line: ModelResult, diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "model": line.label,
        "updates": list(diagnosis.updates),
        "blocks": [
            {
                "position": block.position,
                "origin": diagnosis.origins[block.position],
                "round": block.round,
                "is_identity": block.is_identity,
                "is_candidate": block.is_candidate,
                "without": _removal_values(block.without),
            }
            for block in diagnosis.blocks
        ],
        "without_all": _removal_values(diagnosis.without_all),
        "without_candidates": _removal_values(diagnosis.without_candidates),
    }


def _removal_values(removal: Removal | None) -> dict[str, Any] | None:
    if removal is None:
        return None
    numbers = plain(removal, ("value", "stderr", "low", "high"))
    return {"positions": list(removal.positions), **numbers, "mark": removal.mark}
