"""The report as one self-contained HTML page, and as Markdown for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from pipeline.reporting.collect import Collection
from pipeline.reporting.compare import Comparison
from pipeline.reporting.pages.answer import answer, cautions
from pipeline.reporting.pages.samples import Samples, samples
from pipeline.reporting.pages.verdict import Verdict, verdicts
from pipeline.reporting.seeds import seed_lines
from pipeline.reporting.tables.drift import drift_table
from pipeline.reporting.tables.markdown import markdown
from pipeline.reporting.tables.table import (
    Table,
    detectable_table,
    differences_table,
    facts_table,
    gains_table,
    seed_tables,
    split,
    values_table,
)
from pipeline.reporting.tables.wording import duration, percent

if TYPE_CHECKING:
    from pipeline.reporting.figures.plot import Plot

TEMPLATE = Path(__file__).with_name("page.html")
FEW_ITEMS = 30  # below this, percentile intervals are noticeably too narrow
ANSWERS = {
    "yes": "yes",
    "no": "no",
    "partly": "partly",
    "no_loss": "no loss shown",
    "unclear": "not shown",
    "unknown": "not measured",
    "absent": "no expansion",
    "better": "better",
    "worse": "worse",
    "mixed": "mixed",
}


@dataclass(frozen=True)
class Section:
    """Something about one model, folded on the page: sentences, a figure and a table.

    Attributes:
        is_open: unfolded at first.
        in_text: shown in the Markdown form too, which is printed at the end of a run.
        values: the same as plain JSON values.
        leads: its first sentence is what the whole report says.
    """

    title: str
    sentences: tuple[str, ...]
    plot: Plot | None
    table: Table
    is_open: bool
    in_text: bool
    values: dict[str, Any] = field(default_factory=dict)
    leads: bool = False


def first_sentence(comparison: Comparison, sections: Sequence[Section]) -> str:
    """What the report says: what the section says that leads, if one does, else what became of the models."""
    return next((one.sentences[0] for one in sections if one.leads), None) or answer(comparison)


def html(
    comparison: Comparison,
    plots: list[Plot],
    sections: Sequence[Section] = (),
    parts: Sequence[Section] = (),
    items_page: str = "",
    frontier: Sequence[Section] = (),
    missing: Sequence[str] = (),
) -> str:
    """The whole page. Nothing in it is loaded from elsewhere, and all text from artifacts is escaped.

    `sections` are about blocks, `parts` about what lies inside a benchmark's score; `items_page` names the file beside
    this one that shows single items, if there is one; `frontier` compares methods at equal gain; `missing` says which
    cells of the sweep are not there.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    collection = comparison.collection
    return template.render(
        name=collection.name,
        summary=summary(comparison),
        missing=missing,
        answer=first_sentence(comparison, frontier),
        cautions=cautions(comparison),
        samples=samples(comparison),
        verdicts=verdicts(comparison),
        answers=ANSWERS,
        gains=gains_table(comparison),
        tables=[part for table in result_tables(comparison) for part in split(table)],
        notes=notes(comparison),
        corrected=corrected(comparison),
        frontier=frontier,
        parts=parts,
        items_page=items_page,
        facts=facts_table(comparison),
        lead=next(
            (plot for plot in plots if plot.narrow and not any(one.leads and one.plot for one in frontier)), None
        ),
        plots=[plot for plot in plots if not plot.narrow],
        sections=sections,
        benchmarks=comparison.benchmarks,
        variants=cell_legend(comparison),
        method=method(comparison),
        provenance=collection.provenance,
        commits=_distinct(collection, "git"),
        packages=_distinct(collection, "packages"),
        commands=_distinct(collection, "command"),
        duration=duration,
    )


def result_tables(comparison: Comparison) -> list[Table]:
    """Drift from the base, differences against it, what was too small to tell, scores, and all of it over seeds."""
    single = [make(comparison) for make in (drift_table, differences_table, detectable_table, values_table)]
    return [*single, *seed_tables(comparison, seed_lines(comparison))]


def every_table(comparison: Comparison, sections: Sequence[Section]) -> list[tuple[str, Table]]:
    """All tables of the page with what they are about, in its order."""
    own = [gains_table(comparison), *result_tables(comparison), facts_table(comparison)]
    return [*((one.caption, one) for one in own), *((one.title, one.table) for one in sections)]


def corrected(comparison: Comparison) -> str:
    """Which changes against a base hold after correcting for the number of comparisons; "" if there is one or none."""
    adjusted = comparison.corrected()
    if len(adjusted) < 2:
        return ""
    alpha, titles = 1 - comparison.confidence, {b.name: b.title for b in comparison.benchmarks}
    lines = {line.label: line for line in comparison.lines}
    marked = {key: lines[key[0]].differences[key[1]].mark for key in adjusted}

    def named(holds: bool) -> str:
        return "; ".join(
            f"{label} on {titles[name]} ({marked[label, name]})"
            for (label, name), p in adjusted.items()
            if (p <= alpha) is holds and marked[label, name] in ("better", "worse")
        )

    head = f"Corrected for all {comparison.num_corrected} comparisons with a base (paired permutation test, Holm)"
    chance = f" These alone would not hold, and some may be chance: {named(False)}." if named(False) else ""
    return f"{head}, these changes hold at {percent(alpha)}: {named(True) or 'none'}.{chance}"


def notes(comparison: Comparison) -> list[str]:
    """What evaluations say must be read with their scores."""
    titles = {benchmark.name: benchmark.title for benchmark in comparison.benchmarks}
    return [
        f"{titles[name]}, {line.label}: {note}"
        for line in comparison.lines
        for name, found in line.row.notes.items()
        if name in titles
        for note in found
    ]


def report_markdown(comparison: Comparison, sections: Sequence[Section] = (), missing: Sequence[str] = ()) -> str:
    """The page's text without figures, at most about 120 columns wide in its tables; `missing` as for the page."""
    name, first = _inline(comparison.collection.name), _inline(first_sentence(comparison, sections))
    parts = [
        f"# {name}",
        *map(_inline, missing),
        f"**{first}**",
        *map(_inline, cautions(comparison)),
        summary(comparison),
    ]
    parts += [_verdict_markdown(verdict, len(comparison.collection.variants) > 1) for verdict in verdicts(comparison)]
    for table in (gains_table(comparison), *result_tables(comparison), facts_table(comparison)):
        if table.rows:
            parts += [f"## {table.caption}", markdown(table)]
    if text := corrected(comparison):
        parts.append(_inline(text))
    if found := notes(comparison):
        parts += ["## Notes", "\n".join(f"- {_inline(note)}" for note in found)]
    for section in sections:
        if section.in_text:
            sentences = "\n".join(f"- {_inline(sentence)}" for sentence in section.sentences)
            parts += [f"## {_inline(section.title)}", sentences, markdown(section.table)]
    parts += [_samples_markdown(found) for found in samples(comparison)]
    legend = cell_legend(comparison)
    if legend:
        parts += ["## Variants", "\n".join(f"- **{_inline(label)}**: `{variant}`" for label, variant in legend)]
    if how := method(comparison):
        parts += ["## Method", "\n".join(f"- {sentence}" for sentence in how)]
    return "\n\n".join(parts) + "\n"


def summary(comparison: Comparison) -> str:
    """One line on what was compared."""
    models, benchmarks = len(comparison.lines), sum(not b.gold_of for b in comparison.benchmarks)
    variants = len(comparison.collection.variants)
    text = f"{models} model{'s' if models != 1 else ''}, {benchmarks} benchmark{'s' if benchmarks != 1 else ''}"
    return text + (f", {variants} variants." if variants > 1 else ".")


def cell_legend(comparison: Comparison) -> list[tuple[str, str]]:
    """(label, full override string) of each variant; empty if there is only one."""
    return [] if len(comparison.labels) == 1 else [(label, variant) for variant, label in comparison.labels.items()]


def method(comparison: Comparison) -> list[str]:
    """How the numbers were made and what they do not cover; nothing where there are none."""
    if not comparison.benchmarks:
        return []
    confidence = percent(comparison.confidence)
    tail = (1 - comparison.confidence) / 2
    sentences = [
        "A score is the sum of the items' numerators over the sum of their denominators; its standard error is that of "
        "a ratio estimator over items.",
        f"Differences are paired over identical items (ids and content hashes agree). Intervals are {confidence} "
        f"percentile intervals from {comparison.num_bootstrap:,} bootstrap draws of items. Better and worse mean that "
        "the interval excludes zero; identical means that every item has exactly the same value, and that the models "
        "are the same by construction or the values too fine to agree by chance. Where every answer is right or wrong "
        "and all agree, the interval is the exact one (Clopper-Pearson) of the share of items that may still differ.",
        "Beyond the general shift: domain gain minus the gain on general text, both in bits per byte against the base, "
        "with independent draws of the two sets.",
        "What the base could do already is read off the general and the retention measures. Their mean change is over "
        "those that are accuracies, in percentage points, each measure counting the same.",
        "The intervals cover the choice of items. They do not cover training seeds, and they are not corrected for the "
        f"number of comparisons: of many unchanged measures about {percent(2 * tail)} will look changed. What holds "
        "after Holm's correction is said below the results.",
        "Too small to tell: where an interval contains zero, the true change that the same comparison would call "
        f"better or worse with a probability of {percent(comparison.power)}. A smaller one may be there and not show.",
    ]
    if any(line.drift for line in comparison.lines):
        sentences.append(
            "Drift is KL(base || model) per token over the whole vocabulary: on free and chat samples that the base "
            "wrote at temperature 1, and on inputs of the new domain. Intervals are over these texts. It says how far "
            "the model's distribution moved, not which facts it lost."
        )
    if seed_lines(comparison):
        sentences.append(
            "Over seeds: runs whose settings differ by seeds only. Intervals are Student's t over the runs and, in "
            "quadrature, the error over items, which all runs share; runs that share a stage share its chance."
        )
    if any(b.gold_of for b in comparison.benchmarks):
        sentences.append(
            "Gold answer: the loss of a task's right answer after the same prompt, in bits per byte of its text; the "
            "mean over items. It is read off the pass that scores the options; of written answers it takes one of its "
            "own. Of several right answers it is their mean. Every item changes it, so it shows smaller changes than "
            "accuracy does. Its part `margin` is how much likelier the right answer is than the best wrong option. The "
            "mean change over tasks is what figure and verdict take for what was kept."
        )
    few = [b.title for b in comparison.benchmarks if not b.gold_of and _num_items(comparison, b.name) < FEW_ITEMS]
    if few:
        sentences.append(f"Fewer than {FEW_ITEMS} items, so the intervals are too narrow or missing: {', '.join(few)}.")
    return sentences


def _num_items(comparison: Comparison, benchmark: str) -> int:
    return min(line.scores[benchmark].n for line in comparison.lines if benchmark in line.scores)


def _verdict_markdown(verdict: Verdict, many: bool) -> str:
    title = f"## Verdict: {_inline(verdict.label)}" if many else "## Verdict"
    lines = [f"- **{f.question} {ANSWERS[f.answer].capitalize()}.** {f.text}" for f in verdict.findings]
    return title + "\n\n" + "\n".join(_inline(line) for line in lines)


def _samples_markdown(found: Samples) -> str:
    """Prompts and texts, indented so that Markdown takes them as they stand."""
    blocks = [f"## {_inline(found.title)}", _inline(found.note)]
    for one in found.written:
        blocks.append(f"Prompt:\n\n{_indented(one.prompt)}")
        blocks += [f"{_inline(label)}:\n\n{_indented(text)}" for label, text in one.texts]
    return "\n\n".join(blocks)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in (text.rstrip() or "(nothing)").splitlines())


def _inline(text: str) -> str:
    """Markdown passes HTML through, so what comes from artifacts must not look like a tag."""
    return text.replace("<", "&lt;")


def _distinct(collection: Collection, attribute: str) -> list[str]:
    values = [getattr(source, attribute) for source in collection.provenance]
    return [value for value in dict.fromkeys(values) if value]
