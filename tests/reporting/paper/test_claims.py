"""Which claims hold: on models whose gains are laid down, over items and over seeds, and what is refused beforehand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.engine.run.forecast import Request
from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.paper.checked import checked_claims
from pipeline.reporting.paper.claims_section import claims_sections
from pipeline.reporting.tracing.places import places
from pipeline.reporting.tracing.written import read
from stages import report
from tests.reporting.synthetic import Artifacts, chain, choice_items, items, params, write_items

BENCHMARKS = {
    "held_out": {"title": "Held out", "group": "domain"},
    "moved": {"title": "Moved", "group": "drift"},
    "arc_easy": {"title": "ARC-Easy", "group": "retention"},
    "unfair_tos": {"title": "Unfair-ToS", "group": "domain"},
}
N = 60


class Written:
    """Models with a gain on held-out text that differs a little from item to item."""

    def __init__(self, path) -> None:
        self.artifacts, rng = Artifacts(path), np.random.default_rng(0)
        self.bytes = rng.integers(300, 600, N).astype(float)
        self.bits, self.variants = self.bytes * rng.normal(1.0, 0.1, N), {}

    def add(self, name, gain=0.0, drift=None, kept=0.0, variant="default", **found) -> None:
        """`found`: further benchmarks with their items."""
        seed = sum(map(ord, f"{name}{variant}"))
        own = np.random.default_rng(seed).normal(gain, 0.01, self.bits.size) if gain else 0.0
        found["held_out"] = items(
            "bits_per_byte", False, "held_out", (self.bits - own * self.bytes).tolist(), self.bytes.tolist()
        )
        found["arc_easy"] = choice_items("arc_easy", kept, 200, seed)
        if drift is not None:
            moved = drift * np.random.default_rng(seed).normal(1, 0.1, N) * 64
            found["moved"] = items("kl_nats", False, "moved", moved.tolist(), [64.0] * N)
        models = self.variants.setdefault(variant, [])
        slug = f"{variant}/{name}"
        roles = {one: self.artifacts.add("evaluate", f"{slug}/{one}") for one in found}
        for one, role in roles.items():
            write_items(self.artifacts.inputs[role], found[one])
        stage = "pretrain" if models else "base"
        model = self.artifacts.model(stage, slug, training=bool(models))
        models.append({"name": name, "stage": stage, "model": model, "evaluations": roles})

    def described(self):
        made = [chain(name, models) for name, models in self.variants.items()]
        for variant in made:
            for model in variant["models"][1:]:
                model["parents"] = {"model": "base"}
        return made

    def compare(self):
        collection = collect("n", self.described(), BENCHMARKS, self.artifacts.inputs)
        return compare(collection, confidence=0.95, num_bootstrap=2000, seed=0, power=0.8)

    def checked(self, **asked):
        return checked_claims(self.compare(), asked, 0)

    def verdicts(self, **asked):
        return {one.asked.claim.name: one.verdict(0.05) for one in self.checked(**asked)}


@pytest.fixture
def run(tmp_path) -> Written:
    written = Written(tmp_path / "artifacts")
    written.add("base")
    return written


def test_a_claim_holds_fails_or_cannot_be_told(run):
    for name, gain in {"a": 0.02, "b": 0.04, "c": 0.06, "again": 0.0601}.items():
        run.add(name, gain)
    assert run.verdicts(
        over_full={"of": "b", "than": "a"}, over_lora={"of": "a", "than": "b"}, over_width={"of": "again", "than": "c"},
        interleaved={"of": "c", "than": ["a", "b"]}, domain_learned={"of": "a", "than": ["base", "b"]},
    ) == {
        "over_full": "holds", "over_lora": "does not hold", "over_width": "cannot tell", "interleaved": "holds",
        "domain_learned": "does not hold",
    }  # fmt: skip
    (one,) = run.checked(over_full={"of": "b", "than": "a"})
    (found,) = one.contrasts
    assert found.value == pytest.approx(0.02, abs=0.004) and 0 < found.low < found.value < found.high
    assert (found.of, found.than, found.num_runs, one.measure.title) == ("b", "a", 1, "domain text")


def test_what_rises_rises_at_every_step(run):
    for name, gain in {"one": 0.02, "two": 0.04, "four": 0.06, "flat": 0.06, "less": 0.03}.items():
        run.add(name, gain)
    assert run.verdicts(more_blocks={"of": ["one", "two", "four"]}) == {"more_blocks": "holds"}
    assert run.verdicts(more_blocks={"of": ["one", "two", "four", "flat"]}) == {"more_blocks": "cannot tell"}
    assert run.verdicts(more_blocks={"of": ["one", "four", "less"]}) == {"more_blocks": "does not hold"}
    (one,) = run.checked(more_blocks={"of": ["one", "two", "four"]})
    assert [(c.of, c.than) for c in one.contrasts] == [("two", "one"), ("four", "two")]


def test_no_more_is_within_a_margin(run):
    """Saturation allows 0.001 bits per byte: a model 0.01 better is more, one 0.01 worse is not, one alike is open."""
    for name, gain in {"eight": 0.05, "more": 0.06, "less": 0.04, "alike": 0.0505}.items():
        run.add(name, gain)
    found = {
        name: run.verdicts(saturation={"of": name, "than": "eight"})["saturation"] for name in ("more", "less", "alike")
    }
    assert found == {"more": "does not hold", "less": "holds", "alike": "cannot tell"}


def test_several_runs_widen_the_interval_by_how_far_they_are_apart(run):
    """One run of each is beyond chance; three runs that are far apart are not."""
    for i, gain in enumerate((0.03, 0.05, 0.09)):
        run.add(f"far-{i}", gain)
        run.add(f"near-{i}", 0.055 + 0.001 * i)
    run.add("other", 0.04)
    single, far, near = run.checked(
        over_width={"of": "far-2", "than": "other"}, over_full={"of": "far", "than": "other"},
        over_lora={"of": "near", "than": "other"},
    )  # fmt: skip
    assert [one.verdict(0.05) for one in (single, far, near)] == ["holds", "cannot tell", "holds"]
    (over,) = far.contrasts
    assert over.num_runs == 3 and over.low < 0 < over.high and over.value == pytest.approx(0.0167, abs=0.004)
    assert over.p > 0.2 and near.contrasts[0].num_runs == 3


def test_runs_of_a_sweep_over_seeds_are_runs_of_one_model(run):
    run.variants.clear()
    for seed in range(3):
        variant = f"experiment=paper/position,pretrain.seed={seed}"
        run.add("base", variant=variant)
        run.add("add_8", 0.06 + 0.001 * seed, variant=variant)
        run.add("prefix", 0.03, variant=variant)
    (one,) = run.checked(interleaved={"of": "add_8", "than": "prefix"})
    assert one.verdict(0.05) == "holds" and one.contrasts[0].num_runs == 3 and one.variant == ""
    assert one.command == "python -m pipeline -m experiment=paper/position pretrain.seed=0,1,2"


def test_models_of_two_experiments_in_one_report(run):
    run.variants.clear()
    for variant, name in {"experiment=paper/num_blocks": "add_8", "experiment=paper/width": "moe"}.items():
        run.add("base", variant=variant)
        run.add(name, 0.06 if name == "add_8" else 0.02, variant=variant)
    (one,) = run.checked(over_width={"of": "add_8", "than": "moe"})
    assert one.verdict(0.05) == "holds"
    assert one.command == "python -m pipeline experiment=paper/num_blocks; python -m pipeline experiment=paper/width"
    (section,) = claims_sections(run.compare(), {"over_width": {"of": "add_8", "than": "moe"}}, 0, may_lead=True)
    assert section.leads and f"The models are made by: {one.command}" in section.sentences
    (section,) = claims_sections(run.compare(), {"domain_learned": {"of": "add_8", "than": "base"}}, 0, may_lead=True)
    assert not section.leads


def test_claims_of_models_that_are_made_apart_have_each_their_command(run):
    run.variants.clear()
    for variant, names in {
        "experiment=paper/finetuning": ("add_8", "full"),
        "experiment=paper/width": ("moe",),
    }.items():
        run.add("base", variant=variant)
        for name in names:
            run.add(name, 0.06 if name == "add_8" else 0.02, variant=variant)
    asked = {"over_full": {"of": "add_8", "than": "full"}, "over_width": {"of": "add_8", "than": "moe"}}
    (section,) = claims_sections(run.compare(), asked, 0)
    column = [one.title for one in section.table.columns].index("Command")
    commands = {label.rpartition(" ")[2]: entries[column].text for label, entries in section.table.rows}
    assert commands["fine-tuning"] == "python -m pipeline experiment=paper/finetuning"
    assert commands["baseline"].endswith("; python -m pipeline experiment=paper/width")


def test_seeds_of_one_model_against_a_single_run_say_so(run):
    for i in range(3):
        run.add(f"add_8-{i}", 0.06 + 0.001 * i)
    run.add("other", 0.02)
    (section,) = claims_sections(run.compare(), {"zeroed_writers": {"of": "add_8", "than": "other"}}, 0)
    ((_, entries),) = section.table.rows
    assert entries[1].text == "3 and 1" and "where one of the two has a single run" in section.sentences[-1]


def test_a_model_that_is_not_there_is_told(run):
    run.add("add_1", 0.02)
    run.add("add_2", 0.04)
    one, other = run.checked(more_blocks={"of": ["add_1", "add_2", "add_4"]}, over_width={"of": "add_8", "than": "moe"})
    assert one.verdict(0.05) == "holds" and one.missing == ("add_4",)
    assert other.verdict(0.05) == "not measured" and other.missing == ("add_8", "moe")
    (section,) = claims_sections(run.compare(), {"over_width": {"of": "add_8", "than": "moe"}}, 0)
    assert "without add_8 and moe, which this report does not have" in " ".join(section.sentences)


def test_models_that_answered_different_items_are_not_compared(run):
    """Two experiments of one report whose held-out texts differ: said, and no reason for the report to fail."""
    run.variants.clear()
    for variant, name in {"experiment=paper/num_blocks": "add_8", "experiment=paper/width": "moe"}.items():
        run.add("base", variant=variant)
        run.add(name, 0.06, variant=variant)
        run.bits, run.bytes = run.bits[: N // 2], run.bytes[: N // 2]
    asked = {"over_width": {"of": "add_8", "than": "moe"}}
    (section,) = claims_sections(run.compare(), asked, 0)
    assert section.values["claims"][0]["verdict"] == "not measured"
    assert section.sentences[1].endswith("width baseline: its models share no measure of it on the same items.")


def test_the_papers_own_measure_comes_first(run):
    for name, share in {"blocks": 0.9, "full": 0.4}.items():
        right = (np.random.default_rng(len(name)).random(200) < share).astype(float).tolist()
        run.add(name, 0.05, unfair_tos=items("acc", True, "unfair_tos", right, [1.0] * 200))
    (one,) = run.checked(over_full={"of": "blocks", "than": "full"})
    assert one.measure.title == "Unfair-ToS" and one.measure.unit.name == "points"
    assert one.contrasts[0].value == pytest.approx(50, abs=12) and one.verdict(0.05) == "holds"


def test_less_drift_and_more_kept_are_in_favour(run):
    run.add("blocks", 0.05, drift=0.1)
    run.add("full", 0.05, drift=0.2, kept=-0.5)
    found = {one.asked.claim.name: one for one in run.checked(
        drift_less_than_full={"of": "blocks", "than": "full"}, keep_more_than_full={"of": "blocks", "than": "full"},
    )}  # fmt: skip
    drift, kept = found["drift_less_than_full"], found["keep_more_than_full"]
    assert drift.contrasts[0].value == pytest.approx(0.1, abs=0.01) and drift.verdict(0.05) == "holds"
    assert kept.measure.title == "kept tasks" and kept.contrasts[0].value > 10 and kept.verdict(0.05) == "holds"


def test_the_report_has_a_row_for_each_claim(run, tmp_path):
    for name, gain in {"add_8": 0.06, "prefix": 0.02, "suffix": 0.0599}.items():
        run.add(name, gain, drift=gain)
    directory = tmp_path / "report"
    directory.mkdir()
    asked = {"interleaved": {"of": "add_8", "than": ["prefix", "suffix"]}, "domain_learned": None}
    request = params(run.described(), benchmarks=BENCHMARKS, claims=asked)
    lines = report.forecast(Request(request)).lines
    assert lines == [
        "claim: Interleaved blocks learn more of the domain than blocks below or above all others (Table 5 of v2): "
        "add_8 against prefix, suffix"
    ]
    report.run(SimpleNamespace(directory=directory, params=request, inputs=run.artifacts.inputs, is_main=True,
                               progress=lambda **_: None))  # fmt: skip
    text, page = ((directory / name).read_text() for name in ("report.md", "index.html"))
    row = next(line for line in text.splitlines() if line.startswith("| Interleaved blocks learn"))
    assert "Unfair-ToS 75.11 against 0.81 (prefix) and 60.98 (suffix) (Table 5 of v2)" in row
    assert "domain text, bits/byte: add_8 against prefix +0.0" in row and "| cannot tell |" in row
    verdict = "Of 1 claim of the paper, 1 cannot be told (95 %, corrected for 2 comparisons)."
    assert text.splitlines()[2] == f"**{verdict}**"  # trained models are compared with each other: that leads
    assert "The models are made by: python -m pipeline" in text and "Command" not in text
    assert "Which of the paper&#39;s claims hold here" in page and 'class="texts"' in page
    (values,) = json.loads((directory / "data.json").read_text())["claims"]
    first, second = values["comparisons"]
    assert values["verdict"] == "cannot tell" and first["p"] < 0.05 < second["p"] and first["low"] > 0
    data = json.loads((directory / "data.json").read_text())
    wanted = read(f"{first['value']:+.9f}")
    (place,) = (one for one in places(data, text, wanted) if one.where.startswith("claims"))
    assert place.where == "claims interleaved comparisons add_8 value" and place.value == repr(first["value"])
    made = [one["artifacts"]["evaluations"]["held_out"] for one in data["models"] if one["row"] in ("add_8", "prefix")]
    assert set(place.artifacts) == set(made) and len(made) == 2
    files = {file.name for file in (directory / "tables").iterdir()}
    assert "01-gains-over-the-base.csv" in files
    assert any(name.endswith("which-of-the-paper-s-claims-hold-here.tex") for name in files)
    assert {name.rpartition(".")[0] for name in files if name.endswith("csv")} == {
        name.rpartition(".")[0] for name in files if name.endswith("tex")
    }
    figures = {file.stem for file in directory.glob("*.svg")}
    assert figures and figures == {file.stem for file in directory.glob("*.png")}
