"""The inspection of expanded models whose stacks are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.models.files.tensor_file import Stored
from pipeline.records.expansion import ExpansionMap
from pipeline.reporting.figures.stack_figure import stack_figure, write_inspection
from pipeline.reporting.stack import Stack, build_stack, byte_size, cost_rows, inspection, read_stack
from tests.reporting.synthetic import write_json, write_safetensors

BLOCK = {"self_attn.o_proj.weight": (4, 4), "mlp.experts.0.down_proj.weight": (4, 6), "norm.weight": (4,)}
PER_BLOCK, EMBEDDINGS = 16 + 24 + 4, 40


def entry(position: int, origin: int, round_: int = 1, **more) -> dict:
    return {"position": position, "origin": origin, "group": 0, "round": round_, "lr_scale": 1.0, **more}


def record(blocks: list[dict], prefix: str = "model.layers.", rounds: tuple[str, ...] = ()) -> dict:
    last = max(block["round"] for block in blocks)
    names = [f"{prefix}{b['position']}.{rest}" for b in blocks if b["round"] == last for rest in BLOCK]
    earlier = [{"method": method, "round": i + 1} for i, method in enumerate(rounds)]
    return {"method": "block", "blocks": blocks, "new_parameters": names, "rounds": earlier}


def tensors(num_blocks: int, prefix: str = "model.layers.") -> dict[str, Stored]:
    shapes = {"model.embed_tokens.weight": (10, 4)}
    shapes |= {f"{prefix}{i}.{rest}": shape for i in range(num_blocks) for rest, shape in BLOCK.items()}
    return {
        name: Stored(Path("x"), "BF16", shape, 0, 2 * shape[0] * (shape[1] if len(shape) > 1 else 1))
        for name, shape in shapes.items()
    }


def built(content: dict, stored: dict[str, Stored]) -> Stack:
    return build_stack(ExpansionMap.from_json(content), stored)


def every_fourth(num_old: int) -> list[dict]:
    """One new block above every fourth."""
    return [entry(5 * i + 4, 4 * i + 3, group=i) for i in range(num_old // 4)]


@pytest.mark.parametrize("prefix", ["model.layers.", "transformer.h.", "h.", "gpt_neox.layers.", ""])
def test_parameters_are_counted_by_block(prefix):
    stack = built(record([entry(2, 1), entry(4, 2)], prefix), tensors(5, prefix))
    assert [block.num_parameters for block in stack.blocks] == [PER_BLOCK] * 5
    assert [block.num_new for block in stack.blocks] == [0, 0, PER_BLOCK, 0, PER_BLOCK]
    assert [block.origin for block in stack.blocks] == [None, None, 1, None, 3]
    assert (stack.num_parameters, stack.num_new) == (5 * PER_BLOCK + EMBEDDINGS, 2 * PER_BLOCK)
    assert (stack.num_bytes, stack.num_new_bytes) == (2 * stack.num_parameters, 2 * stack.num_new)


def test_both_rounds_are_told_apart():
    blocks = [entry(3, 1), entry(7, 3), entry(4, 2, 2, lr_scale=0.5)]
    stack = built(record(blocks, rounds=("adept",)), tensors(8))
    assert [block.round for block in stack.blocks] == [0, 0, 0, 1, 2, 0, 0, 1]
    assert stack.num_new == PER_BLOCK and stack.methods == ("adept", "block")
    text = inspection(stack)
    assert "   0 ...12..1\n     . old, 1 new in round 1, 2 new in round 2\n" in text
    assert "8 blocks: 5 old and 3 new in 2 rounds (adept, block);" in text and "x0.5" in text


def test_the_text_says_what_stands_where():
    text = inspection(built(record(every_fourth(32)), tensors(40)))
    lines = text.splitlines()
    assert lines[0] == "40 blocks: 32 old and 8 new; 352 new parameters, 19.56 % of the model."
    assert lines[2] == "   0 " + "....1" * 8
    table = [line.split() for line in lines[5:22]]
    assert table[0] == ["position", "from", "round", "group", "parameters"]
    assert table[1] == ["0-3", "old", "44", "each"] and table[2] == ["4", "new", "3", "1", "0", "44"]
    assert table[-1] == ["39", "new", "38", "1", "7", "44"]
    assert max(map(len, lines[:-1])) < 110


def test_costs_follow_from_the_stated_bytes():
    stack = built(record(every_fourth(32)), tensors(40))
    rows = {name: (new, everything) for name, new, everything in cost_rows(stack)}
    assert rows["parameters"] == ("352", "1,800") and rows["trainable share"] == ("19.56 %", "100 %")
    assert rows["weights"] == ("704 B", "3.52 KiB")
    assert rows["optimizer (AdamW)"] == (byte_size(352 * 12), byte_size(1800 * 12))
    assert rows["optimizer and gradients"] == (byte_size(352 * 16), byte_size(1800 * 16))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1300 * 2**20, "1.27 GiB"), (200 * 2**30, "200 GiB")],
)
def test_bytes_in_words(num_bytes, text):
    assert byte_size(num_bytes) == text


def test_a_widened_model_has_no_new_block():
    names = [f"model.layers.{i}.norm.weight" for i in range(3)]
    stack = built({"method": "soft_moe", "blocks": [], "new_parameters": names, "rounds": []}, tensors(3))
    assert not stack.new and [block.num_new for block in stack.blocks] == [4, 4, 4]
    assert "0-2  old, wider" in inspection(stack)
    assert stack_figure(stack).axes


@pytest.mark.parametrize(("num_old", "num_new"), [(4, 1), (32, 8), (80, 20)])
def test_the_picture_has_a_block_for_each_and_an_arc_for_each_new_one(num_old, num_new):
    (ax,) = stack_figure(built(record(every_fourth(num_old)), tensors(num_old + num_new))).axes
    kinds = [type(patch).__name__ for patch in ax.patches]
    assert (kinds.count("Rectangle"), kinds.count("FancyArrowPatch")) == (num_old + num_new, num_new)
    named = [int(text.get_text()) for text in ax.texts if text.get_fontweight() == "bold"]
    assert named == [5 * i + 4 for i in range(num_new)]


def test_names_of_positions_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = stack_figure(built(record(every_fourth(80)), tensors(100)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_inspection_is_written_beside_the_model_and_is_the_same_every_time(tmp_path):
    stack = built(record(every_fourth(8)), tensors(10))
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_inspection(stack, tmp_path / name)
        found.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert set(found[0]) == {"stack.txt", "stack.svg", "stack.png"} and found[0] == found[1]


def test_a_directory_is_read_without_its_weights(tmp_path):
    assert read_stack(tmp_path) is None
    shapes = {name: list(stored.shape) for name, stored in tensors(5).items()}
    write_safetensors(tmp_path / "model.safetensors", shapes)
    write_json(tmp_path / "expansion.json", {"blocks": [], "new_parameters": []})
    assert read_stack(tmp_path) is None
    write_json(tmp_path / "expansion.json", record([entry(2, 1)]))
    assert read_stack(tmp_path).num_new == PER_BLOCK


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lack 3 recorded new parameters, such as model\.layers\.7"):
        built(record([entry(7, 1)]), tensors(5))
    surplus = {**record([entry(2, 1)]), "blocks": [entry(2, 1), entry(9, 1)]}
    with pytest.raises(ValueError, match=r"names new blocks \[9\], but the weights have 5"):
        built(surplus, tensors(5))
    two = {**record([entry(2, 1)]), "new_parameters": ["a.0.w", "b.0.w"]}
    with pytest.raises(ValueError, match="expected one numbered list"):
        built(two, {name: Stored(tmp_path, "F32", (1,), 0, 4) for name in two["new_parameters"]})
    (tmp_path / "expansion.json").write_text(json.dumps({})[:1])
    with pytest.raises(ValueError, match=r"expansion\.json is damaged"):
        read_stack(tmp_path)
