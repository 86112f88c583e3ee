"""From a retention budget to the request of the stage that judges it: which models, which benchmarks, how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.engine.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.engine.graph import Node
    from pipeline.lineage.variant import Variant

KEPT_GROUPS = ("general", "retention")
"""Of benchmarks: what the base could do already."""
TEXTS = "samples"
"""The group of what is read and not scored."""
TOTALS = ("max_drop", "overall", "overall_gold")
"""The budgets that are not one benchmark's."""


def request(settings: Mapping[str, Any], variant: Variant) -> tuple[dict[str, Any], dict[str, Node]] | None:
    """Params and inputs of the judge of the last model against its reference, or None if no budget is given.

    Raises:
        ConfigError: there is nothing to judge, a budget is not a fraction, or one names a benchmark that the two models
            do not share.
    """
    own = dict(settings["benchmarks"])
    _check_budgets({**{f"benchmarks.{name}": one for name, one in own.items()}, **{k: settings[k] for k in TOTALS}})
    if all(one is None for one in (*(settings[key] for key in TOTALS), *own.values())):
        return None
    name = list(variant.models)[-1]
    base = variant.lineage[name].reference
    if base is None:
        raise ConfigError("evaluate.gate judges a model against its reference, but this config makes none from it")
    reference, judged = variant.evaluations[base], variant.evaluations[name]
    scored = [one for one in judged if variant.benchmarks[one].get("group") != TEXTS]
    shared = [one for one in scored if one in reference]
    if unknown := sorted(set(own) - set(shared)):
        raise ConfigError(
            f"evaluate.gate.benchmarks: {', '.join(unknown)} is not evaluated on both the {base} and the {name} model; "
            f"these are: {', '.join(shared) or 'none'}"
        )
    budgets = _budgets(settings, {one: variant.benchmarks[one].get("group") for one in shared})
    if settings["overall_gold"] is not None and not variant.with_gold & budgets.keys():
        raise ConfigError(
            "evaluate.gate.overall_gold has nothing to judge: none of "
            f"{', '.join(budgets)} scores right answers; add a task with options or short answers, or set it to null"
        )
    titles = {one: variant.benchmarks[one].get("title", one) for one in budgets}
    rest = {key: value for key, value in settings.items() if key not in ("max_drop", "benchmarks")}
    inputs = {f"base-{one}": reference[one] for one in budgets}
    inputs |= {f"model-{one}": judged[one] for one in budgets}
    inputs |= {f"made-{number}": variant.models[step] for number, step in enumerate(variant.path_to(name))}
    return {**rest, "budgets": budgets, "model": name, "titles": titles}, inputs


def _check_budgets(budgets: Mapping[str, Any]) -> None:
    for key, budget in budgets.items():
        is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
        if budget is not None and not (is_number and 0 <= budget < 1):
            raise ConfigError(
                f"evaluate.gate.{key}={budget!r} must be a fraction of the base's score, at least 0 and less than 1, "
                "or null; 0.02 allows a drop of 2 %"
            )


def _budgets(settings: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, float | None]:
    """benchmark -> budget; null where a benchmark counts in the mean only."""
    own = settings["benchmarks"]
    budgets = {name: settings["max_drop"] for name, group in groups.items() if group in KEPT_GROUPS and name not in own}
    if settings["overall"] is None and settings["overall_gold"] is None:
        budgets = {name: budget for name, budget in budgets.items() if budget is not None}
    budgets |= {name: budget for name, budget in own.items() if budget is not None}
    if not budgets:
        raise ConfigError(
            f"evaluate.gate has nothing to judge: no benchmark of the groups {' and '.join(KEPT_GROUPS)} is evaluated; "
            "add one, or name others in evaluate.gate.benchmarks"
        )
    return budgets
