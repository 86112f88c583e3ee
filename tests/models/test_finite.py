"""Overflow and damage: a proof is made where the numbers exist, and what has none is refused by name, never scored."""

import json
import math
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.evaluation.base import Item, Outcome
from pipeline.evaluation.model.scoring import TokenScorer
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.expansion.source import read_source
from pipeline.expansion.verify import verify_identity
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.models.files.safetensors_io import read_index
from pipeline.models.finite import check_finite, check_weights


def changed(source, target, change):
    """A copy of a model with `change` made to its tensors by name."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def loud(tensors):
    """The second block's output is beyond 65,504, the largest number of fp16."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        key = f"model.layers.1.mlp.{name}.weight"
        tensors[key] = torch.sign(tensors[key].float()).to(tensors[key].dtype) * 30


def set_first(name, value):
    def change(tensors):
        tensors[name].view(-1)[0] = value

    return change


def grown(source, target):
    found = read_source(source)
    write_expansion(BlockExpansion(2, 1).plan(found), found, target)
    return target


def test_a_source_that_overflows_is_compared_in_fp32_and_says_so(make_model, tmp_path):
    source = changed(make_model("float16"), tmp_path / "loud", loud)
    with pytest.warns(UserWarning, match="compared in float32 because the source overflows in float16"):
        proof = verify_identity(source, grown(source, tmp_path / "grown"), num_tokens=16)
    assert proof.exact and proof.dtype == "float32" and proof.max_abs_difference == 0
    assert proof.note == "compared in float32 because the source overflows in float16 (first in block 1)"
    json.dumps(proof.record(), allow_nan=False)


def test_a_difference_is_found_in_fp32_too(make_model, tmp_path):
    source = changed(make_model("float16"), tmp_path / "loud", loud)
    other = changed(
        grown(source, tmp_path / "grown"), tmp_path / "other", set_first("model.layers.4.mlp.down_proj.weight", 9.0)
    )
    with pytest.warns(UserWarning, match="overflows in float16"):
        proof = verify_identity(source, other, num_tokens=16)
    assert not proof.exact and proof.max_abs_difference > 0


def test_an_expanded_model_that_overflows_alone_is_not_exact(make_model, tmp_path):
    source = make_model("float16")
    other = changed(grown(source, tmp_path / "grown"), tmp_path / "other", loud)
    with pytest.warns(UserWarning, match="because the expanded model overflows in float16"):
        proof = verify_identity(source, other, num_tokens=16)
    assert proof.overflows_alone and not proof.exact and math.isfinite(proof.max_abs_difference)


def test_a_source_without_numbers_is_refused_by_its_block(make_model, tmp_path):
    source = changed(make_model(), tmp_path / "broken", set_first("model.layers.2.mlp.down_proj.weight", float("nan")))
    with pytest.raises(ValueError, match=r"broken computes NaN or infinity even in float32: .* that of block 2;"):
        verify_identity(source, make_model(), num_tokens=16)
    with pytest.raises(ValueError, match=r"in float32: the first output that is not finite is that of block 2;"):
        check_finite(load(source))
    check_finite(load(make_model()))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(("value", "counts"), [(float("nan"), "1 NaN and 0"), (-float("inf"), "0 NaN and 1")])
def test_damaged_weights_are_found_in_every_dtype(tmp_path, dtype, value, counts):
    good = torch.linspace(-1e4, 1e4, 12).to(getattr(torch, dtype)).view(3, 4)
    edges = torch.tensor([torch.finfo(good.dtype).max, torch.finfo(good.dtype).tiny, 0.0], dtype=good.dtype)
    mask = torch.tensor(-float("inf"), dtype=good.dtype)
    save_file({"a": good, "edges": edges, "mask": mask, "ids": torch.tensor([0x7FFF])}, tmp_path / "model.safetensors")
    read = []
    check_weights(read_index(tmp_path), lambda *progress: read.append(progress))
    assert read[-1][0] == read[-1][1] > 0
    bad = good.clone()
    bad[1, 2] = value
    save_file({"a": good, "b": bad}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"damaged: b in .* holds {counts} infinite values \(1 of 2 tensors"):
        check_weights(read_index(tmp_path))


def test_a_text_on_which_a_model_computes_nan_has_no_score(make_model):
    model = load(make_model(tie_word_embeddings=False))
    scorer = TokenScorer(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = float("nan")
    assert not scorer.score([[3, 4]], [[5]])[0].logprobs.isnan().any()
    for ask in (
        lambda: scorer.score([[3, 9]], [[5]]),
        lambda: scorer.score_choices([[3, 9]], [[5, 6]]),
        lambda: scorer.advance(torch.tensor([[3, 9]]), None),
    ):
        with pytest.raises(ValueError, match="computes NaN on a text of this benchmark"):
            ask()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_items_without_a_finite_score_are_refused(value):
    items = (Item("a", "h", 1.0, 1.0), Item("b", "h", value, 1.0))
    with pytest.raises(ValueError, match=r"1 of 2 items have no finite score \(b: (nan|inf) / 1.0\)"):
        Outcome("bits_per_byte", False, items)


def test_a_finite_source_says_nothing(make_model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proof = verify_identity(make_model("float16"), grown(make_model("float16"), tmp_path / "grown"), num_tokens=16)
    assert proof.exact and proof.dtype == "float16" and proof.note is None
