"""The record of an expansion: what it says, that it survives its file, and that files of earlier versions are read."""

from __future__ import annotations

import json

import pytest

from pipeline.records.expansion import (
    AttachedPack,
    ExpansionMap,
    NewBlock,
    PackBase,
    Round,
    origins,
    read_expansion,
    split_name,
)

NAMES = ("model.layers.2.w", "model.layers.5.w")
FIRST = Round("block", {"num_groups": 2}, True, ("model.layers.4.w",), 1)
TWICE = ExpansionMap(
    method="adept",
    settings={"num_new_blocks": 2},
    blocks=(NewBlock(4, 1, 0, 1, "ab"), NewBlock(2, 1, None, 2, "cd", 0.5), NewBlock(5, 2, 1, 2)),
    new_parameters=NAMES,
    module_parameters=tuple(f"{name}.joined" for name in NAMES),
    rounds=(FIRST,),
    buffers=("model.rotary.inv_freq",),
    notes={"importance": {"increases": [0.5]}},
)
PACKED = ExpansionMap(
    method="packs",
    blocks=(NewBlock(1, 0),),
    new_parameters=("h.1.w",),
    base=PackBase("ef", "{}", None),
    packs=(AttachedPack({"name": "law", "id": "x"}, 0.5, (1,), {0: 0.25}), AttachedPack({"name": "code"}, 1.0, (3, 4))),
)


def written(directory, content) -> None:
    (directory / "expansion.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("record", [TWICE, PACKED], ids=["rounds", "packs"])
def test_it_survives_its_file(tmp_path, record):
    written(tmp_path, record.to_text())
    assert read_expansion(tmp_path) == record
    assert read_expansion(tmp_path).to_text() == record.to_text()


def test_the_file_is_to_the_byte_what_artifacts_and_packs_pin():
    record = ExpansionMap("block", {"init": "copy"}, True, (NewBlock(1, 0, 0),), ("h.1.w",), rounds=(FIRST,))
    block = {"position": 1, "origin": 0, "group": 0, "round": 1, "source_hash": "", "lr_scale": 1.0}
    earlier = {"method": "block", "settings": {"num_groups": 2}, "exact": True}
    content = {
        "method": "block", "settings": {"init": "copy"}, "exact": True, "blocks": [block], "new_parameters": ["h.1.w"],
        "module_parameters": ["h.1.w"], "rounds": [{**earlier, "new_parameters": ["model.layers.4.w"], "round": 1}],
    }  # fmt: skip
    assert record.to_text() == json.dumps(content, indent=2) + "\n"
    keys = [*content, "base", "packs"]
    assert list(PACKED.to_json()) == keys and list(TWICE.to_json()) == [*content, "buffers", "importance"]
    facts = {"name": "law", "id": "x", "gain": 0.5, "block_gains": {"0": 0.25}, "positions": [1]}
    assert json.dumps(PACKED.to_json()["packs"][0]) == json.dumps(facts)
    assert json.dumps(PACKED.to_json()["base"]) == '{"content_hash": "ef", "config": "{}", "expansion": null}'


def test_files_of_earlier_versions_are_read(tmp_path):
    assert read_expansion(tmp_path) == ExpansionMap()
    written(tmp_path, {"new_parameters": ["a.0.w"], "blocks": [{"position": 0, "origin": 0}]})
    record = read_expansion(tmp_path)
    assert record.blocks == (NewBlock(0, 0, None, 1, "", 1.0),)
    assert record.module_parameters == ("a.0.w",) and record.round == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "Expecting property name"),
        ({"blocks": []}, "new_parameters"),
        ([], "list"),
        ({"new_parameters": [], "blocks": [{"position": "two", "origin": 0}]}, "position='two' must be a whole number"),
        ({"new_parameters": [], "blocks": [{"position": 2}]}, "origin"),
        ({"new_parameters": [], "blocks": [{"position": 2, "origin": 0, "place": 1}]}, "place"),
        ({"new_parameters": [], "packs": [{"name": "law"}]}, "gain"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, content, found):
    written(tmp_path, content)
    with pytest.raises(ValueError, match=rf"expansion\.json is damaged \(.*{found}"):
        read_expansion(tmp_path)


def test_what_the_last_round_added():
    assert (TWICE.round, TWICE.last_positions, list(TWICE.by_position)) == (2, {2, 5}, [4, 2, 5])
    assert TWICE.history == (FIRST, Round("adept", {"num_new_blocks": 2}, False, NAMES, 2))
    assert TWICE.lr_scales() == {"model.layers.2.w.joined": 0.5}
    assert (ExpansionMap().round, ExpansionMap().history, ExpansionMap().last_positions) == (0, (), frozenset())


def test_a_round_that_adds_no_block_is_the_last_all_the_same():
    """A widening after a block expansion: what it added stands in every block, and no block is new by it."""
    wider = ExpansionMap("soft_moe", {}, True, (NewBlock(1, 0),), ("h.0.mixing", "h.1.mixing"), rounds=(FIRST,))
    assert (wider.round, wider.last_positions) == (2, frozenset())


def test_origins_of_later_rounds_are_found_in_the_present_stack():
    """0 1 [1] 2 3 [3], then one more above each new block and one below everything, made from old and new ones."""
    first = [NewBlock(3, 1), NewBlock(7, 3)]
    second = [NewBlock(0, 0, round=2), NewBlock(4, 2, round=2), NewBlock(8, 5, round=2)]
    assert origins([*first, *second], 9) == {3: 2, 7: 6, 0: 1, 4: 3, 8: 7}


def test_the_block_of_a_tensor_is_the_first_number_of_its_name():
    assert split_name("model.layers.14.mlp.experts.1.up_proj.weight") == ("model.layers.", 14)
    assert split_name("3.w") == ("", 3) and split_name("conv2.h.7") == ("conv2.h.", 7)
    assert split_name("lm_head.weight") is None and split_name("h.2b.w") is None
