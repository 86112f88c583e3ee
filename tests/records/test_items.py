"""Items, facts and diagnoses as an evaluation writes them and a report reads them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline.records.diagnosis import DiagnosedBlock, Diagnosis, Removal
from pipeline.records.gold import GoldLoss
from pipeline.records.items import Item, ItemText, Outcome, read_items, read_texts, write_items

REMOVAL = Removal((1,), 0.25, 0.125, 0.0, 0.5, (2.0, 3.0))
NO_INTERVAL = Removal((1, 3), 0.5, math.nan, math.nan, math.nan, (4.0,))
BLOCK = DiagnosedBlock(1, 0, 0, 1, "ab", 1.0, is_identity=False, without=REMOVAL, is_candidate=True)
DIAGNOSIS = Diagnosis(0.95, (0.5, 0.25), (BLOCK,), REMOVAL, None)


def outcome(**changes) -> Outcome:
    first = Item("a", "h1", 1, 1, "math", "2+2? \ud800", "4", "four", {"turn 1": (8.0, 1.0)})
    return replace(Outcome("acc", True, (first, Item("b", "h2", 0.5, 2.0))), **changes)


def test_items_survive_their_file(tmp_path):
    write_items(outcome(notes=("One answer was not judged.",), also={"macro_f1": 0.5}), tmp_path)
    items = read_items(tmp_path)
    assert (items.metric, items.higher_is_better, items.ids, items.hashes) == ("acc", True, ("a", "b"), ("h1", "h2"))
    assert items.numerators.tolist() == [1.0, 0.5] and items.denominators.tolist() == [1.0, 2.0]
    assert items.categories == ("math", "")
    assert [column.tolist() for column in items.parts["turn 1"]] == [[8.0, 0.0], [1.0, 0.0]]
    assert (items.notes, items.also, items.diagnosis) == (("One answer was not judged.",), {"macro_f1": 0.5}, None)
    assert read_texts(tmp_path, ["a", "b"]) == {"a": ItemText("2+2? ?", "4", "four")}


def test_the_losses_of_right_answers_are_a_measure_of_the_items_that_have_one(tmp_path):
    losses = (GoldLoss(3.0, 2.0, -1.5), GoldLoss(8.0, 4.0), None)
    items = tuple(Item(f"{i}", f"h{i}", 1, i + 1, gold_loss=loss) for i, loss in enumerate(losses))
    write_items(Outcome("acc", True, items), tmp_path)
    found = read_items(tmp_path)
    assert (found.gold.metric, found.gold.higher_is_better, found.gold.ids) == ("bits_per_byte", False, ("0", "1"))
    assert found.gold.hashes == ("h0", "h1") and not found.lacks_gold
    assert found.gold.numerators.tolist() == [1.5, 4.0] and found.gold.denominators.tolist() == [1.0, 2.0]
    assert [column.tolist() for column in found.gold.parts["margin"]] == [[-0.75, 0.0], [1.0, 0.0]]
    assert pq.read_table(tmp_path / "items.parquet")["gold_bits"].to_pylist() == [3.0, 8.0, None]


def test_items_without_right_answers_and_those_of_earlier_versions_have_no_such_measure(tmp_path):
    path = write_items(outcome(lacks_gold=True), tmp_path)
    assert read_items(tmp_path).gold is None and read_items(tmp_path).lacks_gold
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["gold_bits", "gold_bytes", "gold_margin_bits"]), path)
    assert read_items(tmp_path).gold is None and read_items(tmp_path).ids == ("a", "b")


def test_a_diagnosis_survives_beside_the_items(tmp_path):
    write_items(outcome(diagnosis=DIAGNOSIS), tmp_path)
    found = read_items(tmp_path).diagnosis
    assert found == DIAGNOSIS and found.origins == {1: 0} and not found.is_untouched


def test_what_other_readers_find_keeps_its_form(tmp_path):
    table = pq.read_table(write_items(outcome(diagnosis=DIAGNOSIS), tmp_path))
    names = ["id", "hash", "category", "prompt", "answer", "gold", "numerator", "denominator", "parts"]
    names += ["gold_bits", "gold_bytes", "gold_margin_bits"]
    assert table.column_names == names
    removal = {
        "positions": [1], "value": 0.25, "stderr": 0.125, "low": 0.0, "high": 0.5, "numerators": [2.0, 3.0],
    }  # fmt: skip
    block = {"position": 1, "origin": 0, "group": 0, "round": 1, "source_hash": "ab", "lr_scale": 1.0}
    blocks = [{**block, "is_identity": False, "without": removal, "is_candidate": True}]
    content = {
        "confidence": 0.95, "updates": [0.5, 0.25], "blocks": blocks, "without_all": removal,
        "without_candidates": None,
    }  # fmt: skip
    assert table.schema.metadata[b"facts"].decode() == json.dumps({"diagnosis": content})
    assert table.schema.metadata[b"higher_is_better"] == b"true"


def test_no_interval_is_null_in_the_file_and_nan_again():
    plain = json.loads(json.dumps(NO_INTERVAL.to_json(), allow_nan=False))
    assert plain["low"] is None
    again = Removal.from_json(plain)
    assert math.isnan(again.low) and again.positions == (1, 3) and again.numerators == (4.0,)
    assert not again.is_harmless and again.mark == "within"


@pytest.mark.parametrize(
    ("value", "low", "high", "mark", "is_harmless"),
    [(0, 0, 0, "identical", True), (2, 1, 3, "worse", False), (-2, -3, -1, "better", True), (0, -1, 1, "within", True)],
)
def test_what_a_removal_shows(value, low, high, mark, is_harmless):
    removal = Removal((1,), value, 0.1, low, high, ())
    assert (removal.mark, removal.is_harmless) == (mark, is_harmless)


@pytest.mark.parametrize(
    "content",
    [
        {"confidence": 0.95},
        {**DIAGNOSIS.to_json(), "updates": []},
        {**DIAGNOSIS.to_json(), "blocks": [{"position": 1}]},
        {**DIAGNOSIS.to_json(), "without_all": {"positions": [1]}},
    ],
)
def test_a_torn_diagnosis_is_refused(content):
    with pytest.raises(ValueError, match="holds no whole diagnosis"):
        Diagnosis.from_json(content)


def test_outcomes_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match="no item"):
        Outcome("acc", True, ())
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        outcome(items=outcome().items[:1] * 2)
    with pytest.raises(ValueError, match="1 of 1 items have no finite score"):
        outcome(items=(Item("a", "h", math.nan, 1.0),))
