"""Where a number stands in a report, and of which evaluations and models it is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.reporting.paper.tables import FILE, paper_tables
from pipeline.reporting.tracing.written import Written, numbers_in, shown

NAMES = ("label", "model", "row", "method", "name", "task", "claim", "table", "variant", "of", "title")
"""Keys by which an element of a list is called, the first that it has."""
_LENGTH = 150


class Place(NamedTuple):
    """Where a number stands: in words, its value or the text around it, and the artifacts that it is made of.

    There are none where it is the report's as a whole; they are None where the number is not ours.
    """

    where: str
    value: str
    artifacts: tuple[str, ...] | None


def places(values: Mapping[str, Any], text: str, wanted: Written) -> list[Place]:
    """Every place of a number in a report's values; in the paper's tables that it shows; else in its text, by line.

    Args:
        values: the report's `data.json`.
        text: its `report.md`.
    """
    found = [_place(keys, value, values) for keys, value in _leaves(values) if _is_meant(keys, value, values, wanted)]
    found += _of_paper(values, wanted)
    return found or list(_in_text(text, values, wanted))


def _is_meant(keys: Sequence[str], value: float, values: Mapping[str, Any], wanted: Written) -> bool:
    if (keys[0] == "paper" and keys[-1] == "paper") or not wanted.may_be(value):
        return False  # the paper's own stand in its tables
    above = _walked(keys, values)[-1]
    return not wanted.high or (keys[-1] == "low" and wanted.may_end(above["high"]))


def _leaves(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(node, Mapping | list):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(value, (*keys, str(key)))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield keys, node


def _place(keys: Sequence[str], value: float, values: Mapping[str, Any]) -> Place:
    return Place(_path(keys, values), repr(value), tuple(dict.fromkeys(_made_of(keys, values))))


def _walked(keys: Sequence[str], values: Mapping[str, Any]) -> list[Any]:
    """The nodes that keys lead through, the leaf not included."""
    nodes: list[Any] = [values]
    for key in keys[:-1]:
        nodes.append(nodes[-1][int(key)] if isinstance(nodes[-1], list) else nodes[-1][key])
    return nodes


def _path(keys: Sequence[str], values: Mapping[str, Any]) -> str:
    """The keys for a person: an element of a list by its name, models by their label alone."""
    told = []
    for key, node in zip(keys, _walked(keys, values), strict=True):
        one = node[int(key)] if isinstance(node, list) else None
        name = next((one[k] for k in NAMES if isinstance(one.get(k), str)), None) if isinstance(one, Mapping) else None
        told.append(str(name or key))
    return f"{told[1]}, {' '.join(told[2:])}" if keys[0] == "models" else " ".join(told)


def _made_of(keys: Sequence[str], values: Mapping[str, Any]) -> Iterator[str]:
    """The artifacts by name that a value is made of: evaluations, of what is not measured the model's own."""
    benchmarks = _benchmarks(keys, values)
    for model in _models(keys, values):
        own = model.get("artifacts") or {}
        evaluations = own.get("evaluations") or {}
        yield from (evaluations[name] for name in sorted(benchmarks & evaluations.keys()))
        if not benchmarks and own.get("model"):
            yield own["model"]


def _benchmarks(keys: Sequence[str], values: Mapping[str, Any]) -> set[str]:
    """Those that a value was measured by; none of a fact about a model."""
    from pipeline.reporting.pages.values import GROUPS_OF_GAINS  # numpy comes with it, and --help needs none

    groups = {name: one["group"] for name, one in values["benchmarks"].items()}
    nodes = _walked(keys, values)
    named = {str(n.get("benchmark")) for n in nodes if isinstance(n, Mapping)} | {*keys}
    wanted = named & groups.keys()
    if keys[0] == "claims":
        asked = values["claims"][int(keys[1])]["benchmarks"]
        wanted = set(asked) or {name for name, group in groups.items() if group in ("domain", "drift")}
    elif keys[0] == "paper":
        column = paper_tables()[values["paper"][int(keys[1])]["table"]].column(keys[5])
        wanted = {column.benchmark, column.twin, *(b for c in column.mean for b in _measures(values, keys, c))}
    elif "gains" in keys or keys[0] == "against_first_variant":
        wanted = {n for n, group in groups.items() for key in keys if group in GROUPS_OF_GAINS.get(key, ())}
    elif keys[0] == "frontier":
        wanted = {name for name, group in groups.items() if group in ("domain", "drift")}
    return {name.removesuffix(".gold") for name in wanted}


def _measures(values: Mapping[str, Any], keys: Sequence[str], column: str) -> tuple[str, str]:
    found = paper_tables()[values["paper"][int(keys[1])]["table"]].column(column)
    return found.benchmark, found.twin


def _models(keys: Sequence[str], values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models that a value is about: its own, and what that is compared with."""
    models = {one["label"]: one for one in values["models"]}
    if keys[0] == "models":
        own = values["models"][int(keys[1])]
        is_compared = "scores" not in keys and any(key in keys for key in ("differences", "gains"))
        reference = models.get(str(own.get("reference"))) if is_compared else None
        return [own, *([reference] if reference else [])]
    if keys[0] == "against_first_variant":
        found = values["against_first_variant"][int(keys[1])]
        lasts = {name: one for one in values["models"] for name in one["variants"]}
        return [lasts[found[key]] for key in ("variant", "against") if found.get(key) in lasts]
    return [models[label] for label in dict.fromkeys(_labels(keys, values)) if label in models]


def _labels(keys: Sequence[str], values: Mapping[str, Any]) -> Iterator[str]:
    """What the nodes on the way to a value are called, and the models of a method that a key names."""
    for node in (one for one in _walked(keys, values)[1:] if isinstance(one, Mapping)):
        yield from (node[key] for key in ("label", "model", "row") if isinstance(node.get(key), str))
        yield from node.get("models", ()) if "comparisons" in keys or keys[0] == "over_seeds" else ()
        for method in node.get("methods", ()) if keys[0] == "frontier" else ():
            if method["method"] in keys:
                yield from (point["model"] for point in method["points"])


def _of_paper(values: Mapping[str, Any], wanted: Written) -> Iterator[Place]:
    """The paper's own numbers, in the tables that the report shows."""
    for name in dict.fromkeys(section["table"] for section in values.get("paper", ())):
        table = paper_tables()[name]
        for row, cells in table.rows.items():
            for column, value in cells.items():
                if value is not None and not wanted.high and shown(value, wanted.number):
                    where = f"the paper's own, {table.where} ({table.title}), {row}, {column}"
                    yield Place(where, f"{value}, as printed there; {FILE.name} has it", None)


def _in_text(text: str, values: Mapping[str, Any], wanted: Written) -> Iterator[Place]:
    """Lines of the report with the number; of a table's row the model that it is about."""
    models = {one["label"]: (one.get("artifacts") or {}).get("model") for one in values["models"]}
    for i, line in enumerate(text.splitlines(), 1):
        if wanted.number.replace(",", "") in _plain(numbers_in(line)):
            label = line.strip("| ").partition(" |")[0].strip()
            own = models.get(label)
            yield Place(
                f"report.md, line {i}", line[:_LENGTH] + ("…" if len(line) > _LENGTH else ""), (own,) if own else ()
            )


def _plain(numbers: Iterable[str]) -> set[str]:
    """Numbers without thousands' commas, each with and without its sign."""
    bare = {number.replace(",", "") for number in numbers}
    return bare | {number.lstrip("+-") for number in bare}
