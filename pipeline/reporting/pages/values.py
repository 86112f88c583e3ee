"""The report as plain values: everything that its tables and sentences show, and a few numbers about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.reporting.collect import gold_name
from pipeline.reporting.compare import Comparison, Gains, ModelResult
from pipeline.reporting.pages.answer import cautions
from pipeline.reporting.pages.page import Section, first_sentence, notes
from pipeline.reporting.pages.samples import samples
from pipeline.reporting.pages.verdict import expanded_lines, verdicts
from pipeline.reporting.plain import finite, plain
from pipeline.reporting.seeds import seed_lines, seed_values
from pipeline.reporting.statistics.differences import Difference
from pipeline.reporting.statistics.drift import ALL
from pipeline.reporting.statistics.intervals import Score
from pipeline.reporting.statistics.power import detectable


def data(
    comparison: Comparison,
    sections: Sequence[Section] = (),
    parts: Sequence[Section] = (),
    compared: Sequence[Section] = (),
) -> dict[str, Any]:
    """Everything the tables and sentences show, as plain JSON values; what is not finite becomes null."""
    return {
        "name": comparison.collection.name,
        "answer": first_sentence(comparison, compared),
        "cautions": cautions(comparison),
        "confidence": comparison.confidence,
        "num_bootstrap": comparison.num_bootstrap,
        "benchmarks": {
            b.name: {"title": b.title, "group": b.group, "note": b.note, "gold_of": b.gold_of or None}
            for b in comparison.benchmarks
        },
        "power": comparison.power,
        "models": [_line_data(comparison, line) for line in comparison.lines],
        "corrected_p": [
            {"model": label, "benchmark": name, "p": p} for (label, name), p in comparison.corrected().items()
        ],
        "over_seeds": seed_values(seed_lines(comparison)),
        "notes": notes(comparison),
        "samples": [asdict(found) for found in samples(comparison)],
        "against_first_variant": [
            {
                "variant": baseline.variant,
                "against": baseline.reference,
                "gains": _gains_data(baseline.gains),
                "drift": _difference_data(baseline.drift),
            }
            for baseline in comparison.baselines
        ],
        "verdicts": [
            {
                "variants": list(verdict.variants),
                "findings": [{"question": f.question, "answer": f.answer, "text": f.text} for f in verdict.findings],
            }
            for verdict in verdicts(comparison)
        ],
        "blocks": [section.values for section in sections],
        "parts": [section.values for section in parts],
    }


def headline(comparison: Comparison) -> dict[str, Any]:
    """A few numbers per variant about the model it ends with. With several variants, keys start with their labels."""
    num_benchmarks = sum(not b.gold_of for b in comparison.benchmarks)
    metrics: dict[str, Any] = {"num_models": len(comparison.lines), "num_benchmarks": num_benchmarks}
    for variant in comparison.collection.variants:
        prefix = f"{comparison.labels[variant.name]}/" if len(comparison.collection.variants) > 1 else ""
        for grown in expanded_lines(comparison, variant):
            if grown.differences:
                key = f"{prefix}{grown.name}_equals_{grown.row.reference}"
                metrics[key] = all(d.is_equal for d in grown.differences.values())
        line = comparison.last_line(variant)
        if line is None or line.gains is None:
            continue
        gains = {"domain_gain": line.gains.domain, "beyond_general_shift": line.gains.beyond}
        for key, gain in {**gains, "kept_gold_answers": line.gains.gold}.items():
            if gain is not None:
                metrics[prefix + key] = gain.value
        metrics |= {f"{prefix}{name}": found[ALL].value for name, found in line.drift.items()}
        kept = comparison.kept(line)
        if kept:
            metrics[f"{prefix}num_worse"] = sum(line.differences[b.name].mark == "worse" for b in kept)
    return metrics


def _line_data(comparison: Comparison, line: ModelResult) -> dict[str, Any]:
    facts, power, compared_with = line.row.facts, comparison.power, comparison.reference(line)
    reference = compared_with and compared_with.label
    return {
        "label": line.label,
        "row": line.name,
        "variants": list(line.variants),
        "fingerprint": line.row.fingerprint,
        "reference": reference,
        "artifacts": {
            "model": line.row.model.name,
            "evaluations": {name: directory.name for name, directory in sorted(line.row.directories.items())},
        },
        "num_parameters": facts.num_parameters,
        "num_new_parameters": facts.num_new,
        "trainable_share": facts.trainable_share,
        "tokens": facts.tokens,
        "wall_time_s": facts.wall_time_s,
        "peak_memory_bytes": facts.peak_memory_bytes,
        "num_active_parameters": facts.num_active,
        "flops_per_token": facts.flops_per_token,
        "flops": facts.flops_per_token and facts.tokens and facts.flops_per_token * facts.tokens,
        "tokens_per_s": facts.tokens_per_s,
        "mfu": facts.mfu,
        "mfu_6nd": facts.mfu_6nd,
        "scores": {name: _score_data(line.scores.get(name)) for name in _measured(line)},
        "differences": {
            name: {**(_difference_data(d) or {}), "detectable": finite(detectable(d, power)), "p": line.p_values[name]}
            for name, d in sorted(line.differences.items())
        },
        "gains": None if line.gains is None else _gains_data(line.gains),
        "drift": {
            name: {category: _difference_data(d) for category, d in found.items()} for name, found in line.drift.items()
        },
    }


def _measured(line: ModelResult) -> list[str]:
    """Every measure of a model, and those of right answers whose loss could not be had."""
    return sorted({*line.scores, *map(gold_name, line.row.with_gold)})


def _score_data(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else {"value": score.value, "stderr": finite(score.stderr), "n": score.n}


GROUPS_OF_GAINS = {
    "domain": ("domain",), "general": ("general",), "beyond_general_shift": ("domain", "general"),
    "retention": ("general", "retention"), "gold_bits_per_byte": ("general", "retention"), "drift": ("drift",),
}  # fmt: skip
"""Key of `_gains_data` -> the groups of benchmarks that its number is a mean over."""


def _gains_data(gains: Gains) -> dict[str, Any]:
    return {
        "domain": _difference_data(gains.domain),
        "general": _difference_data(gains.general),
        "beyond_general_shift": _difference_data(gains.beyond),
        "retention": _difference_data(gains.retention),
        "retention_unit": gains.retention_unit,
        "num_retention": gains.num_retention,
        "gold_bits_per_byte": _difference_data(gains.gold),
        "num_gold": gains.num_gold,
    }


def _difference_data(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return plain(difference, ("value", "stderr", "low", "high", "n", "mark"))
