"""The picture of gain and drift stays readable with models that are far off and with more models than markers."""

import pytest
from matplotlib import pyplot

from pipeline.reporting.axes import axes
from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.figures.draw import draw
from pipeline.reporting.figures.tradeoff import far_on, shown_on, tradeoff_figure
from pipeline.reporting.tables.wording import number
from tests.reporting.synthetic import MOVED, Artifacts, chain, none, with_drift


@pytest.fixture
def compared(tmp_path):
    """Runs of models with a domain gain and a drift each; every run has the same base."""

    def comparison(**runs):
        artifacts = Artifacts(tmp_path)
        variants = []
        for seed, (run, models) in enumerate(runs.items(), 1):
            rows = [artifacts.row("base", "smol", "base", none("domain_text"))]
            for name, (gain, _) in models.items():
                stage = "expand" if name == "expanded" else "pretrain"
                rows.append(artifacts.row(name, f"{run}/{name}", stage, {"domain_text": gain}, seed=seed))
            variant = chain(run, rows)
            for row, (_, far) in zip(list(rows)[1:], models.values(), strict=True):
                with_drift(artifacts, {"variant": run, "models": [rows[0], row]}, far, seed)
            variants.append(variant)
        benchmarks = {"domain_text": MOVED["domain_text"], "moved": MOVED["moved"]}
        collection = collect("a run", variants, benchmarks, artifacts.inputs)
        return compare(collection, confidence=0.95, num_bootstrap=50, seed=0, power=0.8)

    return comparison


def texts_of(figure):
    return {text.get_text() for text in figure.axes[0].texts}


def test_what_is_far_off_stands_at_the_edge_with_its_numbers(compared, tmp_path):
    near = {"a": (0.05, 0.1), "b": (0.04, 0.12), "c": (0.03, 0.2), "d": (0.02, 0.1), "e": (0.03, 0.1)}
    models = {**near, "prefix": (-2.5, 6.0)}
    comparison = compared(default=models)
    axis = axes(comparison)[0]
    (far,) = far_on(comparison, axis)
    assert far.name == "prefix"
    figure = tradeoff_figure(comparison, axis)
    left, right = figure.axes[0].get_xlim()
    bottom, top = figure.axes[0].get_ylim()
    assert right < 0.4 and bottom > -0.1 and top < 0.1 and left < 0
    (label,) = (text for text in figure.axes[0].texts if "prefix" in text.get_text())
    across, up = number(axis.of(far).value, axis.digits), number(far.gains.domain.value, 4, signed=True)
    assert label.get_text() == f"prefix ({across}, {up})" and float(across) > 5
    assert left < label.xy[0] < right and bottom < label.xy[1] < top
    pyplot.close(figure)
    assert "At the edge, as they are far off: prefix." in draw(comparison, tmp_path)[0].caption


@pytest.mark.parametrize("others", [("c",), ("c", "d", "e", "f")])
def test_few_models_and_those_that_differ_by_less_are_all_inside(compared, tmp_path, others):
    last = (-0.19, 0.45) if len(others) > 1 else (-2.5, 6.0)
    comparison = compared(default={"a": (0.05, 0.12), **dict.fromkeys(others, (0.05, 0.12)), "b": last})
    assert far_on(comparison, axes(comparison)[0]) == []
    assert "edge" not in draw(comparison, tmp_path)[0].caption


def test_more_models_than_markers_have_their_names_beside_them(compared):
    many = {f"m{i}": (0.01 * i, 0.02 * i) for i in range(1, 10)}
    comparison = compared(**{"x=1": {"expanded": (0.0, 0.0), **many}, "x=2": {"m1": (0.08, 0.1)}})
    axis = axes(comparison)[0]
    assert "expanded" not in {line.name for line in shown_on(comparison, axis)}
    figure = tradeoff_figure(comparison, axis)
    assert {f"m{i}" for i in range(2, 10)} < texts_of(figure)
    assert sum("m1" in text for text in texts_of(figure)) == 2
    assert len(figure.axes[0].get_legend().get_texts()) == 2  # one for each run
    pyplot.close(figure)
