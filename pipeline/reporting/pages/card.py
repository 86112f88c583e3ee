"""The model card of every model that a run made: README.md as the Hub expects it, with what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.models.architecture.custom_models import custom_module
from pipeline.records.expansion import ExpansionMap
from pipeline.reporting.axes import drift_of_line
from pipeline.reporting.collect import Benchmark
from pipeline.reporting.compare import Comparison, ModelResult
from pipeline.reporting.facts import model_directory
from pipeline.reporting.origins import Origin, Step, base_origin, card_header, steps
from pipeline.reporting.pages.answer import of_model
from pipeline.reporting.tables.markdown import markdown
from pipeline.reporting.tables.table import Column, Entry, Table, drift_entry
from pipeline.reporting.tables.wording import MISSING, count, difference_parts, listing, percent, score_text

FOLDER = "cards"
SHOWN = ("num_tokens", "lr", "batch_size", "seq_len", "warmup_ratio", "weight_decay", "precision", "seed")
"""Settings of a training that its card tells, where it has them."""
USE = """\
```python
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or its name on the Hub
model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
{ask}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]))
```"""
CHAT = """\
chat = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
TEXT = 'inputs = tokenizer("Hello", return_tensors="pt")'
CUSTOM = "import {module}  # of llama-pro-pipeline; transformers lacks it\n\n"


def cards(comparison: Comparison, settings: Mapping[str, Any]) -> dict[str, str]:
    """Label -> card of every model that was made from another.

    Args:
        settings: license and language (null: the base's), and origins: what is known of packages and repositories.
    """
    return {line.label: _card(comparison, line, settings) for line in comparison.lines if line.row.parents}


def card_files(labels: Sequence[str]) -> dict[str, str]:
    """Label -> the card's file below the report."""
    files: dict[str, str] = {}
    for label in labels:
        name = re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip("-.") or "model"
        taken = f"{FOLDER}/{name}.md" in files.values()
        files[label] = f"{FOLDER}/{name}{f'-{len(files)}' if taken else ''}.md"
    return files


def _card(comparison: Comparison, line: ModelResult, settings: Mapping[str, Any]) -> str:
    variant = next(v for v in comparison.collection.variants if v.name == line.variants[0])
    line_of = steps(variant, line.row, settings["origins"])
    base = base_origin(line_of[0], settings["origins"])
    header = yaml.safe_dump(_header(base, line_of, settings), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# {comparison.collection.name}: {line.label}",
        _safe(f"{of_model(comparison, line)}."),
        "## How it was made",
        "\n".join(f"{i}. {_safe(_told(step, base))}" for i, step in enumerate(line_of, 1)),
        *_data(line_of),
        *_results(comparison, line),
        "## Use",
        _use(line_of[-1]),
        "## Provenance",
        _provenance(comparison, line_of[-1]),
    ]
    return "\n\n".join(parts) + "\n"


def _header(base: Origin, line_of: Sequence[Step], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the Hub reads; those that are not known are left out."""
    own = card_header(model_directory(line_of[0].model.model, line_of[0].manifest))
    used = [one.origin.repo for step in line_of for one in step.data if one.origin.repo]
    found = {
        "base_model": base.repo,
        "license": settings["license"] or base.license,
        "language": settings["language"] or own.get("language"),
        "datasets": list(dict.fromkeys(used)),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama-pro", *(["block-expansion"] if line_of[-1].expansion.blocks else [])],
    }
    return {key: value for key, value in found.items() if value}


def _told(step: Step, base: Origin) -> str:
    """One step in a sentence or two."""
    name, facts = f"**{step.model.name}**", step.model.facts
    size = f"{count(facts.num_parameters)} parameters" if facts.num_parameters else "size not recorded"
    if not step.model.parents:
        return f"{name}: {base.repo or base.name} ({base.where}), {size}."
    if step.model.training is None:
        proof = "" if facts.max_abs_difference is None else f" Logits differ by at most {facts.max_abs_difference:g}."
        return f"{name} ({step.model.stage}): {_blocks(step.expansion)}; {size}.{proof}"
    trained = "" if facts.num_trainable is None else f"{count(facts.num_trainable)} of {size} trained"
    return f"{name} ({step.model.stage}): {trained or size}, {_strategy(step.params)}. {_settings(step)}."


def _blocks(expansion: ExpansionMap) -> str:
    if not expansion.blocks:
        return f"made by {expansion.method or 'a stage that added no block'}"
    places = listing([str(block.position) for block in sorted(expansion.blocks, key=lambda block: block.position)])
    options = {key: value for key, value in expansion.settings.items() if value is not None}
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{len(expansion.blocks)} new blocks at positions {places} ({expansion.method}: {given})"


def _strategy(params: Mapping[str, Any]) -> str:
    section = params.get("strategy") or {}
    name = str(section.get("_target_", "")).rpartition(".")[2] or "training"
    options = {key: value for key, value in section.items() if key != "_target_" and value not in ({}, None)}
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"by {name}" + (f" ({given})" if given else "")


def _settings(step: Step) -> str:
    values = {**step.params, "num_tokens": step.metrics.get("num_tokens") or step.params.get("num_tokens")}
    shown = {key: values[key] for key in SHOWN if values.get(key) is not None}
    told = (f"{key} {value:,}" if key == "num_tokens" else f"{key} {value}" for key, value in shown.items())
    return ", ".join(told) or "Settings not recorded"


def _data(line_of: Sequence[Step]) -> Iterator[str]:
    rows = [
        (f"{step.model.name}: {one.origin.name}", (
            Entry(one.origin.repo or one.origin.where),
            Entry(MISSING if one.tokens is None else f"{one.tokens:,}"),
            Entry(one.origin.license or "not stated here"),
        ))
        for step in line_of
        for one in step.data
    ]  # fmt: skip
    if rows:
        columns = (Column("", "From"), Column("", "Tokens", "in training"), Column("", "Licence"))
        yield "## Data"
        yield markdown(Table("Data", columns, tuple(rows), "Used by"))


def _results(comparison: Comparison, line: ModelResult) -> Iterator[str]:
    base = comparison.reference(line)
    rows = [(f"{b.title}", _scores(comparison, line, base, b)) for b in comparison.benchmarks if b.name in line.scores]
    if not rows:
        return
    interval = f"{percent(comparison.confidence)} interval"
    columns = (
        Column("", "Base", "± standard error"),
        Column("", "This model", "± standard error"),
        Column("", "Difference", interval),
        Column("", "Items"),
    )
    yield "## Results"
    yield (
        "Differences from the base are paired over the same items; intervals cover the choice of items, not training "
        "seeds."
    )
    yield markdown(Table("Results", columns, tuple(rows), "Measure"))


def _scores(comparison: Comparison, line: ModelResult, base: ModelResult | None, b: Benchmark) -> tuple[Entry, ...]:
    unit, score = comparison.units[b.name], line.scores[b.name]
    before = score_text(base.scores.get(b.name) if base else None, unit)
    if b.name in line.drift:
        found = drift_entry(drift_of_line(line), unit.digits)
    else:
        value, bounds = difference_parts(line.differences.get(b.name), unit.digits, unit.scale)
        found = Entry(value, "", bounds)
    arrow = "↑" if unit.higher_is_better else "↓"
    return Entry(before), Entry(f"{score_text(score, unit)} {unit.name} {arrow}"), found, Entry(f"{score.n:,}")


def _use(step: Step) -> str:
    directory = model_directory(step.model.model, step.manifest)
    read = {name: _json(directory / name) for name in ("config.json", "tokenizer_config.json")}
    has_template = (directory / "chat_template.jinja").is_file() or read["tokenizer_config.json"].get("chat_template")
    module = custom_module(read["config.json"].get("model_type"))
    imports = CUSTOM.format(module=module) if module else ""
    return USE.format(imports=imports, ask=CHAT if has_template else TEXT)


def _json(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _provenance(comparison: Comparison, step: Step) -> str:
    source = next((p for p in comparison.collection.provenance if p.fingerprint == step.model.fingerprint), None)
    lines = [f"- artifact `{step.model.stage}/{step.model.model.name}`, fingerprint `{step.model.fingerprint}`"]
    if source is not None:
        told = {"commit": source.git, "versions": source.packages, "made": source.started}
        lines += [f"- {key}: {value}" for key, value in told.items() if value]
    return "\n".join(lines)


def _safe(text: str) -> str:
    """Markdown passes HTML through, so what comes from artifacts must not look like a tag."""
    return text.replace("<", "&lt;")
