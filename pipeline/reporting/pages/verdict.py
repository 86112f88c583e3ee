"""What the numbers say, in plain sentences. All of it is computed, bad news as plainly as good."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.reporting.axes import drift_of_line
from pipeline.reporting.collect import Benchmark, Variant
from pipeline.reporting.compare import Baseline, Comparison, Gains, ModelResult
from pipeline.reporting.tables.findings import Finding, grouped
from pipeline.reporting.tables.wording import estimate, interval, listing, number

BITS, NATS = "bits per byte", "nats per token"
WORDS = {"better": "better", "worse": "worse", "within": "cannot be told apart", "identical": "identical"}


MANY = 6
"""Trained models of a variant up to which each has findings of its own."""


@dataclass(frozen=True)
class Verdict:
    """The findings about one variant, or about several of which the same is found."""

    variants: tuple[str, ...]
    label: str
    findings: tuple[Finding, ...]


def verdicts(comparison: Comparison) -> tuple[Verdict, ...]:
    """One verdict per variant, or for all that have the same findings; those of the first variant come first."""
    found: dict[tuple[Finding, ...], list[str]] = {}
    for variant in comparison.collection.variants:
        grown = expanded_lines(comparison, variant)
        is_trained = any(row.training for row in variant.rows)
        findings = _about(_exactness, comparison, grown) or [_nothing_expanded(is_trained)]
        findings += _training_findings(comparison, variant) if comparison.benchmarks else []
        findings += [_against_first(comparison, one) for one in comparison.baselines if one.variant == variant.name]
        found.setdefault(tuple(grouped(findings)), []).append(variant.name)
    return tuple(
        Verdict(tuple(names), " / ".join(comparison.labels[name] for name in names), findings)
        for findings, names in found.items()
    )


def _about(
    find: Callable[[Comparison, ModelResult], Finding], comparison: Comparison, lines: Sequence[ModelResult]
) -> list[Finding]:
    return [replace(find(comparison, line), about=line.name) for line in lines]


def _training_findings(comparison: Comparison, variant: Variant) -> list[Finding]:
    lines = [comparison.line(variant.name, row.name) for row in variant.rows if row.training and row.reference]
    trained = [line for line in lines if line is not None]
    if not trained:
        text = "This variant has no trained model, so there is no gain and no forgetting to report."
        return [Finding("Was the domain learned?", "unknown", text)]
    gains = [line.gains.domain for line in trained if line.gains and line.gains.domain]
    many = len(gains) == len(trained) > MANY
    learned = [_domain_of_many(trained)] if many else _each_domain(comparison, trained)
    if len(trained) > MANY and not any(comparison.kept(line) for line in trained):
        return learned
    return learned + _about(_retention, comparison, trained)


def _each_domain(comparison: Comparison, trained: Sequence[ModelResult]) -> list[Finding]:
    """One finding a model; of many, one for all whose domain measures cannot be set against general text."""
    counted = [line for line in trained if line.gains and line.gains.domain]
    if len(trained) <= MANY or len(counted) > len(trained) / 2:
        return _about(_domain, comparison, trained)
    others = len(trained) - len(counted)
    text = (
        f"No domain measure is in {BITS}, so it cannot be set against general text. The table below has each measure."
    )
    question = f"Did the {others} trained models learn the domain beyond a general shift?"
    return [*_about(_domain, comparison, counted), Finding(question, "unknown", text)]


def _domain_of_many(lines: Sequence[ModelResult]) -> Finding:
    """One finding in the place of one a model, which a table shows better."""
    gains = {line.name: line.gains.domain for line in lines if line.gains and line.gains.domain}
    num_better = sum(gain.mark == "better" for gain in gains.values())
    low, high = (choose(gains, key=lambda name: gains[name].value) for choose in (min, max))
    ends = [f"{estimate(gains[name], 4, BITS)} ({name})" for name in (low, high)]
    text = f"{num_better} of {len(gains)} gained outside the interval on the domain text: from {' to '.join(ends)}."
    answer = "yes" if num_better == len(gains) else "partly" if num_better else "unclear"
    return Finding(f"Did the {len(gains)} trained models learn the domain?", answer, text)


def expanded_lines(comparison: Comparison, variant: Variant) -> list[ModelResult]:
    """The models of a variant that were compared with their sources when they were made: grown by an expansion."""
    rows = [row for row in variant.rows if row.reference and row.facts.max_abs_difference is not None]
    return [line for row in rows if (line := comparison.line(variant.name, row.name)) is not None]


def _nothing_expanded(is_trained: bool) -> Finding:
    question = "Does the expanded model equal the base exactly?"
    instead = ": the base was trained as it is" if is_trained else ""
    return Finding(question, "absent", f"This variant has no expanded model{instead}.")


def _exactness(comparison: Comparison, line: ModelResult) -> Finding:
    source = line.row.parents.get("model", line.row.reference)
    question = f"Does the {line.name} model equal the {source} exactly?"
    logits, note = line.row.facts.max_abs_difference, line.row.facts.proof_note
    how = f" ({note})" if note else ""
    proof = "" if logits is None else f" In the expansion's own check, logits differ by at most {logits:g}{how}."
    if source != line.row.reference and logits is not None:  # what it is compared with is not what it was made from
        return Finding(question, "no" if logits else "yes", proof.strip())
    if not line.differences:
        answer = "unknown" if logits is None else "no" if logits else "yes"
        return Finding(
            question, answer, f"The {line.name} model and the {line.row.reference} share no evaluated measure.{proof}"
        )
    changed = [b for b in comparison.benchmarks if b.name in line.differences and not line.differences[b.name].is_equal]
    if not changed:
        return Finding(question, "yes", _all_equal(comparison, line) + proof)
    details = listing([_detail(comparison, line, b) for b in changed])
    text = f"The expansion itself changed the model on {len(changed)} of {_measures(len(line.differences))}: {details}."
    return Finding(question, "no", text + proof)


def _all_equal(comparison: Comparison, line: ModelResult) -> str:
    """What was computed for both models and is equal, and what was not computed again."""
    known = [b for b in comparison.benchmarks if b.name in line.differences]
    taken = [b for b in known if (b.gold_of or b.name) in line.row.taken_over]
    computed = [b for b in known if b not in taken]
    n, text = sum(line.differences[b.name].n for b in computed if not b.gold_of), ""
    if computed:
        text = f"All {n:,} items of {_measures(len(computed))} have exactly the same value."
    elif drift := drift_of_line(line):
        text = f"Its drift, measured on {drift.n} texts, is {drift.value:g}."
    if taken:
        text += f" The scores of {_measures(len(taken))} are the {line.row.reference}'s, not computed again."
    return text.strip()


def _domain(comparison: Comparison, line: ModelResult) -> Finding:
    question = f"Did the {line.name} model learn the domain beyond a general shift?"
    gains = line.gains
    assert gains is not None
    if gains.domain is None:
        return Finding(question, "unknown", _domain_by_other_measures(comparison, line))
    domain = f"On the domain text it gained {estimate(gains.domain, 4, BITS)} over the base"
    if gains.general is None or gains.beyond is None:
        text = f"{domain}. General text was not measured, so a general shift cannot be told apart."
        return Finding(question, "unknown", text)
    general = f"on general text {estimate(gains.general, 4, BITS)}"
    beyond = estimate(gains.beyond, 4, BITS)
    endings = {
        "better": ("yes", f"beyond the general shift that is {beyond}"),
        "worse": ("no", f"general text gained more than the domain: the difference is {beyond}"),
        "within": ("unclear", f"the difference, {beyond}, cannot be told from zero"),
        "identical": ("no", f"nothing changed: the difference is {beyond}"),
    }
    answer, ending = endings[gains.beyond.mark]
    if gains.beyond.mark == "better" and gains.domain.mark != "better":
        # The domain can be ahead of general text only because general text got worse: that is not learning.
        answer = "no"
        ending += ", but only because general text got worse: the domain itself is no better than before"
    elif gains.beyond.mark == "better" and gains.general.mark == "worse":
        ending += ". Part of that is general text getting worse; the domain gain alone is the smaller, safer number"
    return Finding(question, answer, f"{domain}, {general}; {ending}.")


def domain_details(comparison: Comparison, line: ModelResult) -> str:
    """By how much each measure of the domain changed, in words; "" without any."""
    measured = [b for b in comparison.benchmarks if b.group == "domain" and b.name in line.differences]
    return listing([_detail(comparison, line, b) for b in measured]) if measured else ""


def _domain_by_other_measures(comparison: Comparison, line: ModelResult) -> str:
    if not (details := domain_details(comparison, line)):
        return "No domain measure was evaluated on both this model and the base."
    return f"No domain measure is in {BITS}, so it cannot be set against general text. Domain measures: {details}."


def _retention(comparison: Comparison, line: ModelResult) -> Finding:
    question = f"Did the {line.name} model keep what the base could do?"
    measured = comparison.kept(line)
    assert line.gains is not None
    if not measured:
        return Finding(
            question, "unknown", "No general or retention measure was evaluated on both this model and the base."
        )
    by_mark = {
        mark: [b for b in measured if line.differences[b.name].mark == mark]
        for mark in ("worse", "better", "within", "identical")
    }
    worse, better = by_mark["worse"], by_mark["better"]
    if worse:
        details = listing([_detail(comparison, line, b) for b in worse])
        text = f"{len(worse)} of {_measures(len(measured))} {_are(worse)} worse outside the interval: {details}."
    else:
        text = f"None of {_measures(len(measured))} is worse outside its interval."
    if better:
        text += f" Better outside the interval: {listing([_detail(comparison, line, b) for b in better])}."
    if by_mark["within"]:
        text += _largest_possible_loss(comparison, line, by_mark["within"])
    text += _mean_change(line.gains)
    return Finding(question, _retention_answer(comparison, line, measured, len(worse)), text)


def _retention_answer(comparison: Comparison, line: ModelResult, measured: list[Benchmark], num_worse: int) -> str:
    within = [line.differences[b.name] for b in measured if line.differences[b.name].mark == "within"]
    mean = comparison.kept_change(line)
    if (mean is not None and mean.change.mark == "worse") or num_worse > len(measured) / 2:
        return "no"
    if num_worse:
        return "partly"
    if within and all(math.isinf(difference.low) for difference in within):
        return "unknown"
    return "no_loss" if within else "yes"


def _largest_possible_loss(comparison: Comparison, line: ModelResult, within: list[Benchmark]) -> str:
    """An interval that contains zero is no proof of retention: say how much may hide in it."""
    worst, name = 0.0, ""
    for b in within:
        difference, unit = line.differences[b.name], comparison.units[b.name]
        bound = difference.low if difference.higher_is_better else -difference.high
        if unit.name == "%" and math.isfinite(bound) and bound < worst:
            worst, name = bound, b.title
    if not name:
        return ""
    return f" The intervals that contain zero still allow a loss of up to {number(-worst * 100, 1)} points ({name})."


def _mean_change(gains: Gains) -> str:
    text = ""
    if gains.gold is not None and gains.num_gold > 1:
        text += f" Gold answers, mean over {gains.num_gold} tasks: {estimate(gains.gold, 4, BITS)}, positive is better."
    if gains.retention is not None and gains.num_retention > 1:
        text += f" Mean change over {_measures(gains.num_retention)}: {_retention_estimate(gains)}."
    return text


def _retention_estimate(gains: Gains) -> str:
    assert gains.retention is not None
    return estimate(gains.retention, 2, gains.retention_unit)


def _against_first(comparison: Comparison, baseline: Baseline) -> Finding:
    """Variants side by side, so that a baseline that does better is not left for the reader to find."""
    titles = [b.title for b in comparison.benchmarks if b.name in baseline.apart and not b.gold_of]
    question = f"How does {baseline.label} end up against {baseline.reference_label}?"
    parts = []
    for name, gain in (("domain text", baseline.gains.domain), ("general text", baseline.gains.general)):
        if gain is not None:
            parts.append(f"{name}: {WORDS[gain.mark]}, {estimate(gain, 4, BITS)}")
    if baseline.gains.gold is not None:
        parts.append(f"gold answers: {WORDS[baseline.gains.gold.mark]}, {estimate(baseline.gains.gold, 4, BITS)}")
    if baseline.gains.retention is not None:
        parts.append(f"kept measures: {WORDS[baseline.gains.retention.mark]}, {_retention_estimate(baseline.gains)}")
    if baseline.drift is not None:
        parts.append(f"drift from the base: {WORDS[baseline.drift.mark]}, {estimate(baseline.drift, 4, NATS)}")
    compared = (baseline.gains.domain, baseline.gains.gold or baseline.gains.retention, baseline.drift)
    marks = {gain.mark for gain in compared if gain is not None}
    apart = f" Not compared, as the two answered different items: {listing(titles)}." if titles else ""
    if not parts:
        return Finding(question, "unknown", f"The two variants share no measure on the same items.{apart}")
    answer = "unclear"
    if marks <= {"better", "within", "identical"} and "better" in marks:
        answer = "better"
    elif marks <= {"worse", "within", "identical"} and "worse" in marks:
        answer = "worse"
    elif {"better", "worse"} <= marks:
        answer = "mixed"
    text = f"Item by item, positive is in favour of {baseline.label}: {'; '.join(parts)}.{apart}"
    return Finding(question, answer, text)


def _detail(comparison: Comparison, line: ModelResult, benchmark: Benchmark) -> str:
    difference, unit = line.differences[benchmark.name], comparison.units[benchmark.name]
    value = number(difference.value * unit.scale, unit.digits, signed=True)
    return f"{benchmark.title} {value} {unit.of_changes} {interval(difference, unit.digits, unit.scale)}"


def _measures(number_of: int) -> str:
    return f"{number_of} measure" + ("s" if number_of != 1 else "")


def _are(found: list[Benchmark]) -> str:
    return "is" if len(found) == 1 else "are"
