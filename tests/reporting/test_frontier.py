"""Methods at equal gain, told by what their stages trained, from artifacts to the report's section."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.reporting.collect import collect
from pipeline.reporting.compare import compare
from pipeline.reporting.figures.frontier import frontier_figure
from pipeline.reporting.frontier import frontiers
from pipeline.reporting.pages.frontier import frontier_sections
from pipeline.reporting.paper.checked import checked_claims
from pipeline.reporting.paper.claims_section import claims_sections
from tests.reporting.synthetic import Artifacts, items, write_items

BENCHMARKS = {
    "held_out": {"title": "Held out", "group": "domain", "note": ""},
    "moved": {"title": "Moved", "group": "drift", "note": ""},
}
FULL = {"_target_": "pipeline.training.methods.strategy.Full", "penalties": {}}
LORA = {"_target_": "pipeline.training.methods.strategy.Lora", "penalties": {}, "rank": 4}
# gain and drift by learning rate; LoRA drifts half as much more, and its last rate is beaten
POINTS = {1e-4: (0.019, 0.095), 2e-4: (0.04, 0.20), 4e-4: (0.08, 0.40)}
WORSE = {1e-4: (0.01, 0.075), 3e-4: (0.051, 0.3825), 1e-3: (0.045, 0.9)}


class Written:
    """Artifacts of a base and of models trained from it."""

    def __init__(self, path) -> None:
        self.artifacts, self.path = Artifacts(path / "artifacts"), path
        rng = np.random.default_rng(0)
        self.bytes, self.tokens = rng.integers(300, 600, 40).astype(float), np.full(24, 64.0)
        self.bits, self.moved = self.bytes * rng.normal(1.0, 0.1, 40), np.abs(rng.normal(1, 0.3, 24))
        self.kinds = ["chat", "free"] * 12
        self.rows = [self._row("base", self.artifacts.model("base", "b"), 0.0, None)]

    def train(self, name: str, strategy: dict, lr: float, gain: float, drift: float, source="b", **settings) -> None:
        role = self.artifacts.model("pretrain", name, training=True)
        file = self.artifacts.inputs[role] / "manifest.json"
        inputs = {"model": {"fingerprint": source * 64}, "data": {"fingerprint": "d" * 64}}
        params = {"strategy": strategy, "lr": lr, "seed": 0, **settings}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"params": params, "inputs": inputs}))
        self.rows.append(self._row(name, role, gain, drift))

    def comparison(self):
        models = [
            {**row, "parents": {"model": "base"} if row["name"] != "base" else {}, "reference": "base"}
            for row in self.rows
        ]
        models[0]["reference"] = None
        collection = collect("r", [{"variant": "default", "models": models}], BENCHMARKS, self.artifacts.inputs)
        return compare(collection, confidence=0.95, num_bootstrap=1000, seed=0, power=0.8)

    def sections(self, groups=None):
        return frontier_sections(self.comparison(), self.path, 0, groups)

    def _row(self, name: str, model: str, gain: float, drift: float | None) -> dict:
        bits = self.bits - gain * self.bytes
        found = {"held_out": items("bits_per_byte", False, "held_out", bits.tolist(), self.bytes.tolist())}
        if drift is not None:
            moved = (self.moved * drift / self.moved.mean() * self.tokens).tolist()
            found["moved"] = items("kl_nats", False, "moved", moved, self.tokens.tolist())
            for item, kind in zip(found["moved"]["items"], self.kinds, strict=True):
                item["category"] = kind
        roles = {}
        for benchmark, content in found.items():
            roles[benchmark] = self.artifacts.add("evaluate", f"{name}/{benchmark}")
            write_items(self.artifacts.inputs[roles[benchmark]], content)
        return {"name": name, "stage": "pretrain", "model": model, "evaluations": roles}


@pytest.fixture
def written(tmp_path) -> Written:
    return Written(tmp_path)


def test_who_drifts_least_at_each_gain(written):
    """Full fine-tuning drifts 5 nats for a bit, LoRA 7.5 along its two good rates, which end at a gain of 0.051."""
    for lr, (gain, drift) in POINTS.items():
        written.train(f"a-{lr}", FULL, lr, gain, drift)
    for lr, (gain, drift) in WORSE.items():
        written.train(f"b-{lr}", LORA, lr, gain, drift)
    (section,) = written.sections()
    whole = section.values["all"]
    assert [one["method"] for one in whole["methods"]] == ["full fine-tuning", "LoRA"]
    assert [point["lr"] for point in whole["methods"][1]["points"]] == [1e-4, 3e-4, 1e-3]
    assert whole["base"] == "base" and [level["gain"] for level in whole["levels"]] == [0.02, 0.03, 0.04, 0.05]
    for level in whole["levels"]:
        assert level["least"] == "full fine-tuning"
        assert level["drift"]["full fine-tuning"]["value"] == pytest.approx(5 * level["gain"])
        assert level["behind"]["LoRA"]["value"] == pytest.approx(2.5 * level["gain"])
        assert level["behind"]["LoRA"]["low"] > 0 and level["behind"]["LoRA"]["p"] < 0.05
    verdict = section.sentences[0]
    assert verdict.startswith(
        "At equal gain, full fine-tuning drifted least at 0.02, 0.03, 0.04 and 0.05 bits per byte"
    )
    assert ", beyond chance against the other that gains as much" in verdict
    assert section.sentences[1].startswith("Least drift on chat texts alone: full fine-tuning at 0.02, ")
    assert "LoRA +0.0510 at a rate of 3e-4, drifting 0.3825" in section.sentences[3]
    rows = {gain: entries for gain, entries in section.table.rows}
    assert rows["0.02 bits/byte"][0].text == "0.1000" and rows["0.02 bits/byte"][2].text == "full fine-tuning"
    assert rows["0.02 bits/byte"][3].text == "+0.0500 (LoRA)" and rows["0.02 bits/byte"][3].mark == "worse"
    assert all((written.path / f"frontier.{kind}").stat().st_size for kind in ("png", "svg"))


def test_a_claim_at_equal_gain_is_about_the_methods_of_its_models(written):
    for lr, (gain, drift) in POINTS.items():
        written.train(f"full-{lr}", FULL, lr, gain, drift)
    for lr, (gain, drift) in WORSE.items():
        written.train(f"lora-{lr}", LORA, lr, gain, drift)
    comparison = written.comparison()
    (one,) = checked_claims(comparison, {"least_drift": {"of": "full", "than": "lora"}}, 0)
    gains = [0.019 + share * (0.051 - 0.019) for share in (0.25, 0.5, 0.75)]
    assert one.verdict(0.05) == "holds" and [c.at for c in one.contrasts] == [f"{gain:.4f} bits/byte" for gain in gains]
    assert [c.value for c in one.contrasts] == pytest.approx([2.5 * gain for gain in gains])
    (one,) = checked_claims(comparison, {"least_drift": {"of": "lora-0.0001", "than": "full-0.0001"}}, 0)
    assert one.verdict(0.05) == "does not hold" and one.contrasts[0].of == "LoRA"
    (one,) = checked_claims(comparison, {"least_drift": {"of": "blocks", "than": "full"}}, 0)
    assert one.verdict(0.05) == "not measured" and one.missing == ("blocks",)


def test_a_claim_says_which_methods_share_no_gain(written):
    for lr, (gain, drift) in POINTS.items():
        written.train(f"full-{lr}", FULL, lr, gain, drift)
        written.train(f"lora-{lr}", LORA, lr, gain + 0.2, drift)
    (section,) = claims_sections(written.comparison(), {"least_drift": {"of": "full", "than": "lora"}}, 0)
    assert (
        section.values["claims"][0]["verdict"] == "not measured" and "without LoRA, with which" in section.sentences[1]
    )


def test_a_method_that_does_not_reach_a_gain(written):
    third = {"_target_": "pipeline.training.methods.existing_blocks.ExistingBlocks", "penalties": {}}
    for lr, (gain, drift) in POINTS.items():
        written.train(f"a-{lr}", FULL, lr, gain, drift)
        written.train(f"b-{lr}", LORA, lr, gain, drift)  # the same in all: no difference at any gain
        written.train(f"c-{lr}", third, lr, gain / 4, drift / 4)
    (section,) = written.sections()
    text = {gain: [entry.text for entry in entries] for gain, entries in section.table.rows}
    assert text["0.06 bits/byte"][2] == "not reached" and section.table.columns[2].title == "existing blocks"
    assert all(level["behind"].get("LoRA", {"p": 1})["p"] == 1 for level in section.values["all"]["levels"])
    assert section.sentences[0].endswith(
        ", within chance of each other method that gains as much (corrected for 5 comparisons)."
    )


def test_each_gain_says_against_whom_it_is_chance(written):
    """Two methods that drift alike and one far behind, which does not reach the largest gains."""
    third = {"_target_": "pipeline.training.methods.existing_blocks.ExistingBlocks", "penalties": {}}
    for lr, (gain, drift) in POINTS.items():
        written.train(f"a-{lr}", FULL, lr, gain, drift)
        written.train(f"b-{lr}", LORA, lr, gain, drift)
        written.train(f"c-{lr}", third, lr, gain / 2, drift * 2)
    verdict = written.sections()[0].sentences[0]
    assert (
        "bits per byte, at 0.02 and 0.04 beyond chance against existing blocks and within chance of LoRA, at 0.06 and "
        "0.08 within chance of each other method that gains as much (corrected for 6 comparisons)."
    ) in verdict


def test_methods_that_share_no_gain(written):
    for lr, (gain, drift) in POINTS.items():
        written.train(f"a-{lr}", FULL, lr, gain, drift)
        written.train(f"b-{lr}", LORA, lr, gain + 0.2, drift)
    (section,) = written.sections()
    assert section.sentences[0].startswith("No two methods share a gain") and section.table.rows == ()
    assert "full fine-tuning +0.0190 to +0.0800; LoRA +0.2190 to +0.2800" in section.sentences[0]


def test_none_with_one_method_or_one_rate(written):
    for lr, (gain, drift) in POINTS.items():
        written.train(f"a-{lr}", FULL, lr, gain, drift)
    written.train("b", LORA, 1e-4, 0.02, 0.1)
    assert written.sections() == []


def test_a_method_whose_drift_is_of_other_texts_is_named_and_not_compared(written):
    for lr, (gain, drift) in POINTS.items():
        written.train(f"a-{lr}", FULL, lr, gain, drift)
        written.train(f"b-{lr}", LORA, lr, gain, drift)
    written.moved, written.tokens, written.kinds = written.moved[:20], written.tokens[:20], written.kinds[:20]
    for lr, (gain, drift) in POINTS.items():
        written.train(f"c-{lr}", {**LORA, "rank": 8}, lr, gain, drift)
    (section,) = written.sections()
    assert [one["method"] for one in section.values["all"]["methods"]] == ["full fine-tuning", "LoRA"]
    left_out = "Not compared, as their base or their items are others: c-0.0001, c-0.0002 and c-0.0004."
    assert left_out in section.sentences


def test_two_names_of_one_model_are_one_rate(written):
    """As of a twin that tunes two models on the same conversations."""
    written.train("a", FULL, 1e-4, 0.02, 0.1)
    written.train("c", LORA, 1e-4, 0.02, 0.1)
    written.rows += [{**written.rows[1], "name": "b"}, {**written.rows[2], "name": "d"}]
    assert written.sections() == []


def test_what_tells_methods_apart_is_as_little_as_can_be(written):
    """Settings where these do; where they do not, the name of the models, which for one is what it trains anyway."""
    new = {"_target_": "pipeline.training.methods.new_blocks.NewBlocks", "penalties": {}}
    for name, source, tokens in (("new_blocks", "b", 24576), ("suffix", "c", 24576), ("mixtral", "e", 13312)):
        for lr, (gain, drift) in POINTS.items():
            written.train(f"{name}-{lr}", new, lr, gain, drift, source, num_tokens=tokens)
    (section,) = written.sections()
    named = [one["method"] for one in section.values["all"]["methods"]]
    assert named == ["new blocks", "new blocks (suffix)", "new blocks (mixtral)"]
    few = frontiers(
        written.comparison(), 0, lines=[one for one in written.comparison().lines if one.name[:3] in ("new", "mix")]
    )
    assert [one.label for one in few[0].methods] == ["new blocks, num_tokens=24576", "new blocks, num_tokens=13312"]


def test_methods_of_one_kind_are_told_apart_by_their_settings(written):
    for lr, (gain, drift) in POINTS.items():
        written.train(f"a-{lr}", LORA, lr, gain, drift, seed=1)
        written.train(f"b-{lr}", {**LORA, "rank": 8}, lr, gain, drift)
    names = [one["method"] for one in written.sections()[0].values["all"]["methods"]]
    assert names == ["LoRA, rank=4, seed=1", "LoRA, rank=8, seed=0"]


def test_methods_are_compared_within_their_groups(written):
    """Each method by the name of its models, under its label, with what it cost at its largest gain."""
    for lr, (gain, drift) in POINTS.items():
        written.train(f"all-{lr}", FULL, lr, gain, drift)
        written.train(f"half-{lr}", FULL, lr, gain / 2, drift, num_tokens=100)
    for lr, (gain, drift) in WORSE.items():
        written.train(f"low_rank-{lr}", LORA, lr, gain, drift)
    groups = {"at equal size": {"all": "All", "low_rank": "Low rank", "gone": "Gone"}, "at equal cost": {"all": "All",
              "half": "Half", "low_rank": None}}  # fmt: skip
    first, costs, second, others = written.sections(groups)
    assert (
        first.title == "Who drifts least for the same gain, at equal size?" and first.values["group"] == "at equal size"
    )
    assert first.plot.path != second.plot.path
    rows = dict(costs.table.rows)
    assert list(rows) == ["All", "Low rank"] and costs.sentences[-1] == "Not in this run, or at one rate alone: Gone."
    assert rows["All"][0].text == "4e-4" and rows["Low rank"][0].text == "3e-4"
    assert rows["All"][1].text.startswith("+0.080") and rows["All"][2].text == "0.4000"
    assert [label for label, _ in others.table.rows] == ["All", "Half"]


def test_methods_that_train_the_same_are_told_apart_by_their_models(written):
    for name, source in (("low", "b"), ("high", "c")):
        for lr, (gain, drift) in POINTS.items():
            written.train(f"{name}-{lr}", FULL, lr, gain, drift, source)
    (section,) = written.sections()
    named = [one["method"] for one in section.values["all"]["methods"]]
    assert named == ["full fine-tuning (low)", "full fine-tuning (high)"]


def test_what_got_worse_is_named_and_not_drawn(written):
    """A point far to the left would leave the others no room."""
    for lr, (gain, drift) in POINTS.items():
        written.train(f"all-{lr}", FULL, lr, gain, drift)
        written.train(f"low_rank-{lr}", LORA, lr, gain / 2, drift)
    written.train("low_rank-1", LORA, 1.0, -0.5, 2.0)
    (section,) = written.sections()
    assert "Not drawn, as they got worse on the domain: LoRA at 1e0 (−0.5" in section.plot.caption
    figure = frontier_figure(frontiers(written.comparison(), 0)[0], 0.95)
    assert figure.axes[0].get_xlim()[0] > -0.1
