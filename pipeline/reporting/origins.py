"""How a model came to be, by the manifests of its line: its base, its steps, and the data of each with licences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.records.expansion import ExpansionMap, read_expansion
from pipeline.reporting.collect import Model, Variant, read_manifest
from pipeline.reporting.facts import RANDOM, model_directory

CARD = "README.md"
Known = Mapping[str, Mapping[str, str]]
"""Name of a package, a repository of the Hub or a source of the config -> license, repo."""


@dataclass(frozen=True)
class Origin:
    """Where a model or a text comes from.

    Attributes:
        name, where: for people.
        license: its identifier on the Hub; "" where it is not known.
        repo: on the Hub; "" where it has none, or none is known.
    """

    name: str
    where: str
    license: str
    repo: str


@dataclass(frozen=True)
class Used:
    """One source of a stage's data, and the tokens that were taken of it; None where they were not counted."""

    origin: Origin
    tokens: int | None


@dataclass(frozen=True)
class Step:
    """One model of the line: its manifest, what its stage was given, and what was added so far."""

    model: Model
    manifest: Mapping[str, Any]
    expansion: ExpansionMap
    data: tuple[Used, ...]

    @property
    def params(self) -> Mapping[str, Any]:
        return self.manifest.get("params") or {}

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.manifest.get("metrics") or {}


def steps(variant: Variant, model: Model, known: Known) -> list[Step]:
    """The models that one came from, the base first, and itself."""
    names, left = {model.name}, [model]
    while left:
        parents = [row for name in left.pop().parents.values() if (row := variant.row(name)) and name not in names]
        names |= {row.name for row in parents}
        left += parents
    return [_step(row, known) for row in variant.rows if row.name in names]


def base_origin(step: Step, known: Known) -> Origin:
    """Where the base comes from, by its params and the card in its own directory."""
    source = step.params.get("source") or {}
    found = _origin(source, step.model.name, known)
    own = card_header(model_directory(step.model.model, step.manifest))
    return Origin(found.name, found.where, found.license or str(own.get("license") or ""), found.repo)


def card_header(directory: Path) -> Mapping[str, Any]:
    """The YAML header of a model directory's card; empty where there is none that can be read."""
    if not (directory / CARD).is_file():
        return {}
    head, *rest = (directory / CARD).read_text(encoding="utf-8", errors="replace").split("\n---", 1)
    try:
        found = yaml.safe_load(head.removeprefix("---")) if rest and head.startswith("---") else None
    except yaml.YAMLError:  # a card is written by hand, and no part of what is measured
        return {}
    return found if isinstance(found, Mapping) else {}


def _step(row: Model, known: Known) -> Step:
    manifest = read_manifest(row.model)
    return Step(row, manifest, read_expansion(model_directory(row.model, manifest)), tuple(_used(row, manifest, known)))


def _used(row: Model, manifest: Mapping[str, Any], known: Known) -> Iterator[Used]:
    tokens = (manifest.get("metrics") or {}).get("tokens_by_source") or {}
    pointer = (manifest.get("inputs") or {}).get("data") or {}
    directory = row.model.parent.parent / str(pointer.get("directory"))
    data: Mapping[str, Any] = {}
    if pointer and (directory / "manifest.json").is_file():  # prepared data may be deleted when it is used no more
        data = (read_manifest(directory).get("params") or {}).get("data") or {}
    sources = {**(data.get("sources") or {}), **(data.get("replay") or {})}
    for name in dict.fromkeys([*sources, *tokens]):
        yield Used(_origin(_source(sources.get(name)) or {}, name, known), tokens.get(name))


def _source(section: Any) -> Mapping[str, Any] | None:
    """The first mapping inside a source's settings that says where it is."""
    if not isinstance(section, Mapping):
        return None
    if "kind" in section:
        return section
    return next((found for value in section.values() if (found := _source(value))), None)


def _origin(source: Mapping[str, Any], name: str, known: Known) -> Origin:
    kind = source.get("kind")
    own = str(source.get("name" if kind == "package" else "repo") or name)
    facts = {**known.get(own, {}), **known.get(name, {})}
    where = {
        "package": f"package {own} {source.get('version')}",
        "hub": f"{own} on the Hub at {str(source.get('revision'))[:12]}",
        "local": f"local files, content {str(source.get('content'))[:12]}",
        RANDOM: "random weights",
    }.get(str(kind), "not recorded")
    repo = own if kind == "hub" else facts.get("repo", "")
    return Origin(name if kind != "package" else own, where, facts.get("license", ""), repo)
