"""The config's `lineage`: the models of a run by name, each with the stage that makes it and the models it comes from.

lineage:
  base:            {stage: base}
  expanded:        {stage: expand, from: base}
  mixed:           {stage: mix, from: {a: expanded, b: base}, with: {t: 0.3}}
  full:            {stage: pretrain, from: base, each: {lr: [1.0e-4, 2.0e-4]}}

`each` stands for several models, one for each value of a setting: here full-1e-4 and full-2e-4; `chain` for models that
learn one task after the other, see `chains`. `task` names the benchmark of what a model learned, so that the report can
follow what is kept of it. An entry that is null is left out, so that an experiment can replace the models of the
default lineage.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pipeline.engine.errors import ConfigError
from pipeline.engine.stage import ANY_ROLE, Stage, find_stage
from pipeline.lineage.chains import BEFORE, CHAIN, REPLAY, chained, merged

MODEL = "model"
"""The kind of artifact that a lineage names."""
KEYS = ("stage", "from", "with", "each", "reference", "task", "chain", "before", "replay")
BUDGETS = ("num_steps", "num_tokens", "num_epochs", "num_flops")
"""Keys of a section of which one is set: where one is given, those given less specifically step back."""


@dataclass(frozen=True)
class Entry:
    """One model of a lineage.

    Attributes:
        name: of the model, for people and for other entries.
        stage: name of the stage that makes it.
        declared: what that stage says of itself.
        parents: role -> name of a model that it is made from.
        settings: its section of the config with its own changes.
        reference: name of the model that it is compared with; None: the base that it came from.
        task: the benchmark of what it learned, if it is one of a sequence.
    """

    name: str
    stage: str
    declared: Stage
    parents: Mapping[str, str]
    settings: Mapping[str, Any]
    reference: str | None = None
    task: str | None = None

    @property
    def section(self) -> str:
        """Name of its section of the config."""
        return section_of(self.stage, self.declared)

    @property
    def is_skipped(self) -> bool:
        """Whether its (first) parent is passed through in its place."""
        return bool(self.settings.get("skip")) and bool(self.parents)


def section_of(stage: str, declared: Stage) -> str:
    """Name of the config section with a stage's settings."""
    return declared.section or stage.rpartition(".")[2]


def read_lineage(config: Mapping[str, Any]) -> list[Entry]:
    """The entries of a resolved config, parents before those made from them, else in the order of the config.

    Raises:
        ConfigError: an entry that cannot be made: unknown stages, names, roles or keys, or a cycle; names the key.
    """
    lineage = models_of(config)
    if not lineage:
        raise ConfigError("lineage is empty; it names the models of a run, such as lineage.base={stage: base}")
    entries = {name: _read(name, value, config) for name, value in lineage.items()}
    for entry in entries.values():
        _check_names(entry, entries)
    return _ordered(entries)


def models_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """name -> entry of every model that the config's lineage names, those that `each` and `chain` stand for one by one.

    Raises:
        ConfigError: an `each` that does not say which values of which setting, a chain of unknown tasks, or a name that
            they make twice.
    """
    named = config.get("lineage")
    found: dict[str, Any] = {}
    for name, value in named.items() if isinstance(named, Mapping) else ():
        for one, entry in _several(name, value, config.get("tasks") or {}).items():
            if one in found:
                raise ConfigError(f"lineage names the model {one!r} twice; give lineage.{name} another name")
            found[one] = entry
    return {name: entry for name, entry in found.items() if entry is not None}


def _several(name: str, value: Any, tasks: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, Mapping) and CHAIN in value:
        return chained(name, value, tasks)
    return _each(name, value) if isinstance(value, Mapping) and "each" in value else {name: value}


def overlay(section: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A section with an entry's own changes; a mapping that names its class, the whole too, replaces what stood there,
    a budget the others.

    Raises:
        ConfigError: a key that the section does not have.
    """
    if "_target_" in changes:
        return dict(changes)
    unknown = [key for key in changes if key not in section]
    if unknown and not (section.get("skip") and changes.get("skip", True)):  # a skipped section has no other keys
        close = difflib.get_close_matches(str(unknown[0]), [str(key) for key in section], n=1)
        guess = f"; did you mean {close[0]}?" if close else f" (it has: {', '.join(map(str, section))})"
        raise ConfigError(f"{where}.{unknown[0]} is not a key of the section that it changes{guess}")
    others = [key for key in BUDGETS if key in section] if any(changes.get(key) is not None for key in BUDGETS) else []
    return {**section, **dict.fromkeys(others), **{key: merged(section.get(key), new) for key, new in changes.items()}}


def _read(name: str, value: Any, config: Mapping[str, Any]) -> Entry:
    where = f"lineage.{name}"
    if not isinstance(value, Mapping) or not isinstance(value.get("stage"), str):
        raise ConfigError(f"{where}={value!r} must be a mapping with a stage, such as {{stage: pretrain, from: base}}")
    if unknown := sorted(set(value) - set(KEYS)):
        raise ConfigError(f"{where} has the keys {', '.join(map(repr, unknown))}; known are {', '.join(KEYS)}")
    if alone := [key for key in (BEFORE, REPLAY) if key in value]:
        raise ConfigError(f"{where} has {alone[0]} and no chain, which it is for; remove it")
    declared: Stage = _find(value["stage"], where)
    section = config.get(section_of(value["stage"], declared))
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"{where}.stage={value['stage']} has no section {section_of(value['stage'], declared)!r} in the config; "
            f"add one, such as +{section_of(value['stage'], declared)}=OPTION"
        )
    settings = overlay(section, value.get("with") or {}, f"{where}.with")
    parents = _parents(value.get("from"), declared, where)
    return Entry(name, value["stage"], declared, parents, settings, value.get("reference"), value.get("task"))


def _each(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """An entry for each value of the setting that `each` names, in `with`; dots lead into its sections."""
    each, rest = value["each"], {key: one for key, one in value.items() if key != "each"}
    values = next(iter(each.values())) if isinstance(each, Mapping) and len(each) == 1 else None
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"lineage.{name}.each={each!r} must name one setting and a list of its values, such as "
            "{lr: [1.0e-4, 2.0e-4]}"
        )
    names = [f"{name}-{_short(one)}" for one in values]
    if len(set(names)) < len(names):
        raise ConfigError(f"lineage.{name}.each={each!r} has the same value twice")
    (path,) = each
    changes = [reduce(lambda inner, key: {key: inner}, reversed(path.split(".")), one) for one in values]
    given = rest.get("with") or {}
    return {one: {**rest, "with": merged(given, change)} for one, change in zip(names, changes, strict=True)}


def _short(value: Any) -> str:
    """2e-4 for 0.0002, as people write a rate."""
    if not isinstance(value, float) or not 0 < abs(value) < 0.01:
        return f"{value:g}" if isinstance(value, float) else str(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _find(stage: str, where: str) -> Stage:
    try:
        declared: Stage = find_stage(stage).STAGE
    except ConfigError as error:
        raise ConfigError(f"{where}.stage: {error}") from error
    if declared.makes != MODEL:
        raise ConfigError(f"{where}.stage={stage} makes {declared.makes}, not a model; a lineage names models")
    return declared


def _parents(given: Any, declared: Stage, where: str) -> dict[str, str]:
    roles = [role for role, kind in declared.inputs.items() if kind == MODEL and role != ANY_ROLE]
    if given is None or isinstance(given, str):
        given = {} if given is None else {roles[0] if roles else MODEL: given}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given.values()):
        raise ConfigError(f"{where}.from={given!r} must be the name of a model, or a mapping of roles to names")
    if wrong := [role for role in given if declared.kind_of(role) != MODEL]:
        known = "; it has " + ", ".join(roles) if roles else ": it is made from no model"
        raise ConfigError(f"{where}.from: its stage reads no model in the role {wrong[0]!r}{known}")
    if missing := [role for role in roles if role not in given]:
        raise ConfigError(f"{where}.from names no model for the role {missing[0]!r}; add from: NAME")
    return {str(role): name for role, name in given.items()}


def _check_names(entry: Entry, entries: Mapping[str, Entry]) -> None:
    named = {f"from ({role})": name for role, name in entry.parents.items()}
    if entry.reference is not None:
        named["reference"] = entry.reference
    for key, name in named.items():
        if name not in entries:
            close = difflib.get_close_matches(name, entries, n=1)
            guess = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(entries)}"
            raise ConfigError(f"lineage.{entry.name}.{key}: the lineage has no model {name!r}{guess}")


def _ordered(entries: Mapping[str, Entry]) -> list[Entry]:
    done: dict[str, Entry] = {}

    def visit(entry: Entry, path: tuple[str, ...]) -> None:
        if entry.name in path:
            cycle = " <- ".join([*path[path.index(entry.name) :], entry.name])
            raise ConfigError(f"lineage has a cycle: {cycle}; a model cannot be made from itself")
        if entry.name not in done:
            for parent in entry.parents.values():
                visit(entries[parent], (*path, entry.name))
            done[entry.name] = entry

    for entry in entries.values():
        visit(entry, ())
    return list(done.values())
