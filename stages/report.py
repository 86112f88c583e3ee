"""Compare all models of a run, or of all cells of a sweep: report.md, index.html, items.html, data.json, figures as SVG
and PNG, below tables/ every table as CSV and LaTeX, and below cards/ a model card of every model that was made;
`python -m pipeline.export` puts it beside the weights.

params:
    name, confidence, num_bootstrap, seed, power
    items: {per_benchmark, characters}: how many single items are shown, and how much of each text
    card: {license, language, origins: {name: {license, repo}}}: what a model card says that no artifact knows
    paper: {table: {model: row}}: the paper's tables that models of the run stand beside, null leaving one out
    groups: {what they have in common: {method: its label}}: methods that are compared with each other
    claims: {claim: {of: models, than: models}}: the paper's claims that are checked by models of the run
    variants: [{variant, is_reference, models: [{name, stage, parents: {role: name}, reference: name | null,
        model: role, evaluations: {benchmark: role}}]}], of a variant's models those first that others are made from;
        is_reference is true of the variant that the others are judged against
    benchmarks: {name: {title, group: domain | drift | general | retention | samples, note}}
    sweep: null, or which of a sweep's cells are not among the variants: {num_cells, present: [cell], missing: [{cell,
        variant, why, command}], command: that runs what is left}
inputs: every role used in `variants`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.stage import ANY_ROLE, Stage
from pipeline.reporting.paper.claims import check_claims, check_named, claim_lines, known_claims
from pipeline.reporting.paper.plan import paper_lines
from pipeline.reporting.paper.tables import check_asked, paper_tables
from pipeline.reporting.statistics.settings import check_bootstrap, check_share

ITEMS_PAGE = "items.html"
GROUPS = ("domain", "drift", "general", "retention", "samples")
ITEMS = {"per_benchmark", "characters"}
CARD, ORIGIN = {"license", "language", "origins"}, {"license", "repo"}


@dataclass(frozen=True)
class Params:
    """`conf/report`, and what is compared; see above."""

    name: str
    confidence: float
    num_bootstrap: int
    seed: int
    power: float
    items: Mapping[str, int]
    card: Mapping[str, Any]
    paper: Mapping[str, Mapping[str, str | None]]
    groups: Mapping[str, Mapping[str, str | None]]
    claims: Mapping[str, Mapping[str, Any] | None]
    variants: Sequence[Mapping[str, Any]]
    benchmarks: Mapping[str, Mapping[str, Any]]
    sweep: Mapping[str, Any] | None


STAGE = Stage(version=11, makes="report", inputs={ANY_ROLE: "any"}, params=Params)


def forecast(request: Request) -> Forecast:
    """Refuse a report that could not be computed. Raises ValueError."""
    params = request.params
    check_settings(params)
    for name, benchmark in params["benchmarks"].items():
        if benchmark["group"] not in GROUPS:
            raise ValueError(
                f"benchmark {name}: group={benchmark['group']!r} is unknown; use one of {', '.join(GROUPS)}"
            )
    if not params["variants"]:
        raise ValueError("report: there are no variants; at least one is required")
    for variant in params["variants"]:
        _check_models(variant["variant"], variant["models"], set(params["benchmarks"]))
    names = [variant["variant"] for variant in params["variants"]]
    if len(set(names)) != len(names):
        raise ValueError(f"report: the variants {names} are not all different")
    return Forecast(lines=[*paper_lines(params["paper"]), *claim_lines(params["claims"])])


def joined(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of a report with the paper's rows and claims that other runs of the same report ask for, where the
    settings themselves say nothing of them. What this version does not know is left out."""
    paper = {name: dict(rows) for name, rows in settings["paper"].items()}
    claims = dict(settings["claims"])
    for other in others:
        for name, rows in other.get("paper", {}).items():
            known = paper_tables()[name].rows if name in paper_tables() else ()
            found = {model: row for model, row in rows.items() if row in known}
            paper[name] = {**found, **paper.get(name, {})}
        asked = {name: one for name, one in other.get("claims", {}).items() if one and name in known_claims()}
        claims = {**asked, **claims}
    return {**settings, "paper": {name: rows for name, rows in paper.items() if rows}, "claims": claims}


def check_settings(params: Mapping[str, Any]) -> None:
    """Refuse settings of conf/report before the work that it is about. Raises ValueError."""
    check_bootstrap(params, "report")
    check_share(params["power"], "report.power", "0.8")
    _check_items(params["items"])
    _check_card(params["card"])
    check_asked(params["paper"])
    _check_groups(params["groups"])
    check_claims(params["claims"])


def check_models(params: Mapping[str, Any], models: Mapping[str, str]) -> None:
    """Refuse settings of conf/report about a model that is none of these; see `check_named`. Raises ValueError."""
    check_named(params["claims"], models)


def _check_items(items: dict[str, Any]) -> None:
    if set(items) != ITEMS or not all(isinstance(items[key], int) for key in items):
        raise ValueError(f"report.items={items} must have whole numbers for {' and '.join(sorted(ITEMS))}")
    if items["per_benchmark"] < 0 or items["characters"] < 1:
        raise ValueError("report.items.per_benchmark must be at least 0 (0 leaves the page out), characters at least 1")


def _check_groups(groups: Any) -> None:
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise ValueError(f"report.groups={groups!r} must map what methods have in common to {{method: its label}}")
    for title, group in groups.items():
        labels = [label for label in group.values() if label is not None]
        if len(set(labels)) != len(labels):
            raise ValueError(f"report.groups.{title} has the labels {labels}; each method needs its own")


def _check_card(card: Mapping[str, Any]) -> None:
    if set(card) != CARD or not isinstance(card["origins"], Mapping):
        raise ValueError(f"report.card has the keys {sorted(card)}; it must have {', '.join(sorted(CARD))}")
    for name, known in card["origins"].items():
        if not isinstance(known, Mapping) or not ORIGIN.issuperset(known):
            raise ValueError(
                f"report.card.origins.{name}={known!r} must be a mapping of {' and '.join(sorted(ORIGIN))}"
            )


def _check_models(variant: str, models: Sequence[Mapping[str, Any]], benchmarks: set[str]) -> None:
    names = [model["name"] for model in models]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"variant {variant!r} has the models {names}; at least one is required, and each name once")
    for place, model in enumerate(models):
        if unknown := set(model["parents"].values()) - set(names[:place]):
            raise ValueError(
                f"variant {variant!r}: {model['name']} comes from {sorted(unknown)}, which is not above it"
            )
        if model["reference"] not in (None, *names):
            raise ValueError(f"variant {variant!r}: {model['name']} has the reference {model['reference']!r}, no model")
    if unknown := {name for model in models for name in model["evaluations"]} - benchmarks:
        raise ValueError(f"variant {variant!r} evaluates {sorted(unknown)}, which benchmarks does not describe")


def run(context: worker.Context) -> dict[str, Any]:
    from pipeline.reporting.collect import collect
    from pipeline.reporting.compare import compare
    from pipeline.reporting.figures.draw import draw
    from pipeline.reporting.missing_cells import missing_lines
    from pipeline.reporting.pages.blocks import block_sections
    from pipeline.reporting.pages.card import card_files, cards
    from pipeline.reporting.pages.continual import continual_sections
    from pipeline.reporting.pages.data import data_sections
    from pipeline.reporting.pages.frontier import frontier_sections
    from pipeline.reporting.pages.items_page import items_html
    from pipeline.reporting.pages.page import every_table, html, report_markdown
    from pipeline.reporting.pages.parts import part_sections
    from pipeline.reporting.pages.power import power_sections
    from pipeline.reporting.pages.values import data, headline
    from pipeline.reporting.paper.claims_section import claims_sections
    from pipeline.reporting.paper.section import paper_sections
    from pipeline.reporting.tables.files import table_files

    params = context.params
    collection = collect(params["name"], params["variants"], params["benchmarks"], context.inputs)
    context.progress(step=1, total=3, note="comparing models")
    comparison = compare(
        collection,
        confidence=params["confidence"],
        num_bootstrap=params["num_bootstrap"],
        seed=params["seed"],
        power=params["power"],
    )
    context.progress(step=2, total=3, note="drawing")
    plots = draw(comparison, context.directory)
    sections = [*block_sections(comparison, context.directory), *data_sections(comparison)]
    frontier = frontier_sections(comparison, context.directory, params["seed"], params["groups"])
    continual = continual_sections(comparison, context.directory, params["seed"])
    paper = paper_sections(comparison, params["paper"], context.directory)
    claims = claims_sections(comparison, params["claims"], params["seed"], params["groups"], may_lead=not frontier)
    compared = [*claims, *paper, *frontier, *continual]
    parts = [*part_sections(comparison), *power_sections(comparison)]
    page = items_html(comparison, **params["items"])
    if page:
        _write(context, ITEMS_PAGE, page)
    written = cards(comparison, params["card"])
    files = card_files(list(written))
    for label, text in written.items():
        _write(context, files[label], text)
    missing = missing_lines(params["sweep"])
    values = {**data(comparison, sections, parts, compared), "cards": files, "sweep": params["sweep"]}
    values |= {"frontier": [section.values for section in frontier if section.values]}
    values |= {"paper": [section.values for section in paper]} if paper else {}
    values |= claims[0].values if claims else {}
    values |= {"continual": [section.values for section in continual]} if continual else {}
    for name, text in table_files(every_table(comparison, [*compared, *parts, *sections])).items():
        _write(context, f"tables/{name}", text)
    _write(context, "report.md", report_markdown(comparison, [*compared, *parts, *sections], missing))
    page_of_items = ITEMS_PAGE if page else ""
    _write(context, "index.html", html(comparison, plots, sections, parts, page_of_items, compared, missing))
    _write(context, "data.json", json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return headline(comparison)


def _write(context: worker.Context, name: str, text: str) -> None:
    (context.directory / name).parent.mkdir(exist_ok=True)
    (context.directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    worker.main(run)
