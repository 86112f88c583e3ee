from __future__ import annotations

import numpy as np
import pytest

from pipeline.reporting.collect import _provenance, collect
from pipeline.reporting.facts import Facts, read_facts
from tests.reporting.synthetic import (
    BENCHMARKS,
    NEW,
    Artifacts,
    chain,
    choice_items,
    none,
    one_variant,
    write_json,
    write_safetensors,
)


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(tmp_path)


def collected(artifacts, variants):
    return collect("a run", variants, BENCHMARKS, artifacts.inputs)


def test_everything_a_cell_names_is_read(artifacts):
    collection = collected(artifacts, [one_variant(artifacts)])
    (variant,) = collection.variants
    assert [row.name for row in variant.rows] == ["base", "expanded", "post-pretrained", "tuned"]
    tuned = variant.row("tuned")
    assert tuned.facts == Facts(
        1250, 250, 250, 0.2, 1_638_400, 754.2, 3 * 2**30, mfu=0.25, mfu_6nd=0.4, num_active=1250
    )
    assert tuned.stage == "sft" and tuned.curve.loss.size == 400 and tuned.curve.val_loss.size == 5
    assert variant.row("expanded").facts.max_abs_difference == 0.0
    assert [b.group for b in collection.benchmarks] == ["domain"] + ["general"] * 4 + ["retention"]
    assert collection.provenance[0].git == "4f0c2d9"
    assert collection.provenance[0].command == "python -m pipeline experiment=tos"


def test_an_unknown_role_is_named(artifacts):
    variant = one_variant(artifacts)
    variant["models"][0]["evaluations"]["sciq"] = "evaluate-000000000000"
    with pytest.raises(ValueError, match="'evaluate-000000000000' is not among"):
        collected(artifacts, [variant])


@pytest.mark.parametrize("name", ["manifest.json", "items.parquet", "metrics.jsonl"])
def test_a_missing_file_names_its_directory(artifacts, name):
    variant = one_variant(artifacts)
    directory = next(d for d in artifacts.inputs.values() if (d / name).exists())
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"{directory.name} has no {name}"):
        collected(artifacts, [variant])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metric": "acc", "higher_is_better": True}, "has no 'items'"),
        ({"metric": "acc", "higher_is_better": True, "items": []}, "found no items"),
        ({"metric": "acc", "higher_is_better": True, "items": [{"id": "a"}]}, "has no 'hash'"),
        ([], "items.json"),
    ],
)
def test_damaged_items_name_their_directory(artifacts, content, message):
    variant = chain("default", [artifacts.row("base", "smol", "base", none("sciq"))])
    directory = artifacts.inputs[variant["models"][0]["evaluations"]["sciq"]]
    (directory / "items.parquet").unlink()
    write_json(directory / "items.json", content)
    with pytest.raises(ValueError, match=message) as error:
        collected(artifacts, [variant])
    assert directory.name in str(error.value)


def test_items_of_earlier_versions_are_read(artifacts):
    variant = chain("default", [artifacts.row("base", "smol", "base", none("sciq"))])
    before = collected(artifacts, [variant]).variants[0].rows[0].evaluations["sciq"]
    directory = artifacts.inputs[variant["models"][0]["evaluations"]["sciq"]]
    write_json(directory / "items.json", choice_items("sciq", 0.0, 200, 0))
    (directory / "items.parquet").unlink()
    after = collected(artifacts, [variant]).variants[0].rows[0].evaluations["sciq"]
    assert after.ids == before.ids and after.hashes == before.hashes
    assert np.array_equal(after.numerators, before.numerators)


def test_a_torn_file_of_items_names_its_directory(artifacts):
    variant = chain("default", [artifacts.row("base", "smol", "base", none("sciq"))])
    file = artifacts.inputs[variant["models"][0]["evaluations"]["sciq"]] / "items.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=file.parent.name):
        collected(artifacts, [variant])


def test_a_base_by_reference_is_counted_where_it_lies(tmp_path):
    write_safetensors(tmp_path / "weights" / "model-1.safetensors", {"a": [2, 3], "b": []})
    write_safetensors(tmp_path / "weights" / "model-2.safetensors", {"c": [5]})
    weight_map = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    write_json(tmp_path / "weights" / "model.safetensors.index.json", {"weight_map": weight_map})
    facts = read_facts(tmp_path / "artifact", {"model_path": str(tmp_path / "weights")}, None)
    assert facts.num_parameters == 2 * 3 + 1 + 5 and facts.num_new is None


def test_new_parameters_come_from_the_file_beside_the_weights(tmp_path):
    write_safetensors(tmp_path / "model" / "model.safetensors", {NEW[0]: [7], "other": [3]})
    write_json(tmp_path / "model" / "expansion.json", {"new_parameters": NEW})
    assert read_facts(tmp_path, {}, None).num_new == 7
    write_json(tmp_path / "model" / "expansion.json", {"new_parameters": [*NEW, "stored.under.another.name"]})
    assert read_facts(tmp_path, {}, None).num_new is None


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"<html>" * 4)
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_facts(tmp_path, {}, None)


def test_a_recorded_command_can_be_pasted():
    typed = ["/some/where/pipeline/__main__.py", "-m", "data=./a b,./c"]
    assert _provenance("x", {"provenance": {"argv": typed}}).command == "python -m pipeline -m 'data=./a b,./c'"
