"""What each training stage was given: shares asked and observed, repetition, packing, and what was not used and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.reporting.collect import read_manifest
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.pages.page import Section
from pipeline.reporting.tables.table import Column, Entry, Table
from pipeline.reporting.tables.wording import MISSING, count, number, percent

COLUMNS = (
    Column("", "Tokens"),
    Column("", "Asked", "% of tokens"),
    Column("", "Observed", "% of tokens"),
    Column("", "Seen", "times"),
    Column("", "Rejected", "rows"),
    Column("", "Left out", "rows"),
)


def data_sections(comparison: Comparison) -> list[Section]:
    """One section per trained model whose stage recorded its mixture; in the text form too if rows were rejected."""
    sections = []
    for line in comparison.lines:
        if line.row.training is None:
            continue
        metrics = read_manifest(line.row.training).get("metrics") or {}
        if "shares_by_source" in metrics:
            sections.append(_section(line, metrics))
    return sections


def _section(line: ModelResult, metrics: Mapping[str, Any]) -> Section:
    used = metrics.get("data") or {}
    # Empty documents are usual; anything else should be seen without unfolding the page.
    rejected = {reason for counts in used.get("rejected", {}).values() for reason in counts} - {"empty"}
    keys = ("tokens_by_source", "shares_by_source", "epochs_by_source", "repeated_tokens_by_source", "packing")
    values = {"row": line.label, **{key: metrics.get(key) for key in keys}, "data": used}
    table = Table("Tokens by source", COLUMNS, tuple(_rows(metrics, used)), "Source")
    sentences = tuple(_sentences(metrics, used))
    return Section(f"Data: {line.label}", sentences, None, table, False, bool(rejected), values)


def _rows(metrics: Mapping[str, Any], used: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    for source, share in metrics["shares_by_source"].items():
        texts = (
            count(metrics["tokens_by_source"][source]),
            number(share["asked"] * 100, 2),
            number(share["observed"] * 100, 2),
            number(metrics["epochs_by_source"][source], 3),
            *(_total(used.get(kind, {}).get(source)) for kind in ("rejected", "left_out")),
        )
        yield source, tuple(map(Entry, texts))


def _total(counts: Mapping[str, int] | None) -> str:
    return MISSING if counts is None else count(sum(counts.values()))


def _sentences(metrics: Mapping[str, Any], used: Mapping[str, Any]) -> Iterator[str]:
    packing = metrics["packing"]
    yield (
        f"{packing['rows']:,} rows, {percent(round(packing['efficiency'], 4))} of them tokens and the rest padding; "
        f"{packing['documents_cut_at_a_row_end']:,} documents go on in the next row."
    )
    for source, counts in packing["overlong"].items():
        if counts:
            yield f"{source}: {_listed(counts)} of documents longer than a row, or without anything to learn."
    if repeated := {source: n for source, n in metrics["repeated_tokens_by_source"].items() if n}:
        yield f"Seen before in the same run: {', '.join(f'{count(n)} tokens of {s}' for s, n in repeated.items())}."
    for kind, words in (("rejected", "rejected as damaged or of another form"), ("left_out", "left out by a rule")):
        for source, counts in used.get(kind, {}).items():
            if counts:
                yield f"{source}: {words}: {_listed(counts)}. They are in the data's rejected.jsonl."
    for source, counts in used.get("ignored_keys", {}).items():
        if counts:
            yield f"{source}: keys of rows that nothing reads: {_listed(counts)}."
    for source, chats in used.get("reasoning_left_out", {}).items():
        yield f"{source}: of {chats:,} conversations the chat template leaves reasoning out."
    if overlap := used.get("overlap"):
        found = ", ".join(f"{s['met']:,} of {s['items']:,} of {name}" for name, s in overlap["sets"].items())
        removed = sum(overlap["removed"].values())
        yield (
            f"{removed:,} documents were left out because they hold {overlap['ngram']} words in a row of an evaluation "
            f"set. Items met: {found}."
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in counts.items())
