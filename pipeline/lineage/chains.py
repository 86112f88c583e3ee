"""A chain of tasks in a lineage: the models that learn one task after the other, each from the one before.

tasks:    # what each changes in the section of the stage that learns it; its name is that of the benchmark of it
  first:  {data: {...}}
  second: {data: {...}, num_epochs: 5}
lineage:
  full: {stage: sft, from: base, chain: [first, second]}
  grown: {stage: sft, from: base, chain: [first, second], before: {stage: expand}, replay: 100}

stands for full-first and full-second; and for grown-first-expand, grown-first, grown-second-expand and grown-second:
`before` makes a model ahead of each task, here one with fresh blocks. `replay` adds to a task's data that many
conversations of each task before it. A chain may be a mapping, too, of tasks to what they change in this chain alone. A
task that is null is left out of every chain.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.engine.errors import ConfigError

CHAIN, BEFORE, REPLAY, TASK = "chain", "before", "replay", "task"


def chained(name: str, entry: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that one with a `chain` stands for, each with the `task` that its model learns.

    Raises:
        ConfigError: a chain of no tasks, or of one that is not known, or replay of data without conversations to limit.
    """
    where = f"lineage.{name}"
    if "each" in entry:
        raise ConfigError(f"{where} has both chain and each; give one of them")
    before = entry.get(BEFORE)
    if before is not None and not (isinstance(before, Mapping) and "stage" in before):
        raise ConfigError(f"{where}.before={before!r} must be a mapping with a stage, such as {{stage: expand}}")
    rest = {key: value for key, value in entry.items() if key not in (CHAIN, BEFORE, REPLAY)}
    above, earlier, found = entry.get("from"), dict[str, Any](), dict[str, Any]()
    for task, own in _steps(where, entry[CHAIN], tasks):
        if before:
            grown = f"{name}-{task}-{str(before['stage']).rpartition('.')[2]}"
            found[grown] = {"from": above, **before}
            above = grown
        changes = merged(merged(tasks[task], entry.get("with") or {}), own)
        if replay := entry.get(REPLAY):
            changes = _with_replay(where, task, changes, earlier, replay)
        found[f"{name}-{task}"] = {**rest, "from": above, "with": changes, TASK: task}
        above = f"{name}-{task}"
    if not found:
        raise ConfigError(f"{where}.chain has no task left: all of them are null in tasks")
    return found


def merged(old: Any, new: Any) -> Any:
    """`new` laid over `old`; a mapping that names its class replaces what stood there."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)) or "_target_" in new:
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def _steps(where: str, chain: Any, tasks: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tasks in order, and what each changes in this chain."""
    if not isinstance(chain, list | Mapping) or not chain:
        raise ConfigError(f"{where}.chain={chain!r} must list tasks in the order in which they are learned")
    named = [str(task) for task in chain]
    if len(set(named)) < len(named):
        raise ConfigError(f"{where}.chain={named} has a task twice; a task is learned once")
    for task in named:
        if task not in tasks:
            close = difflib.get_close_matches(task, tasks, n=1)
            guess = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(tasks) or 'none'}"
            raise ConfigError(f"{where}.chain names {task!r}, which is not a key of tasks{guess}")
        if tasks[task] is not None:
            yield task, (chain[task] or {}) if isinstance(chain, Mapping) else {}


def _with_replay(
    where: str, task: str, changes: Mapping[str, Any], earlier: dict[str, Any], number: int
) -> dict[str, Any]:
    """The changes with some conversations of each source of the tasks before; adds this task's own to `earlier`."""
    sources = (changes.get("data") or {}).get("sources")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"{where}.replay={number!r} must be a number of conversations of each task before, or null")
    if not isinstance(sources, Mapping) or not all("limit" in source for source in sources.values()):
        raise ConfigError(
            f"{where}.replay takes so many conversations of each source of tasks.{task}.data, whose sources must have "
            "the key limit, as those of conf/data/local_chat.yaml and trace.yaml do"
        )
    data = {**changes["data"], "sources": {**sources, **earlier}}
    earlier |= {f"{task}-{name}": {**source, "limit": number} for name, source in sources.items()}
    return {**changes, "data": data}
