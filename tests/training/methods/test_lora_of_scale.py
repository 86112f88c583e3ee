"""A model widened by SCALE in the training loop: LoRA adapts what was added, or is refused."""

import re

import pytest
import torch
from safetensors.torch import load_file

from pipeline.expansion.methods.scale import Scale
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion
from pipeline.models import load
from pipeline.records.expansion import ExpansionMap, read_expansion
from pipeline.training.methods.strategy import Lora, apply_strategy
from tests.training.test_fit import store, train  # noqa: F401

ADDED = r".*(_proj|lm_head)\.(new|back)"


@pytest.fixture(scope="module", params=["preserve", "adapt"])
def widened(request, make_model, tmp_path_factory):
    source, target = read_source(make_model("float32")), tmp_path_factory.mktemp("widened")
    write_expansion(Scale(request.param, 8, 1, 16, "random", 0).plan(source, None), source, target)
    return target


def test_lora_adapts_the_maps_that_were_added(widened, store, tmp_path):  # noqa: F811
    metrics = train(widened, tmp_path, store, Lora(2, 4, 0.0, ADDED))
    before, after = (load_file(one / "model.safetensors") for one in (widened, tmp_path / "model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    new = set(read_expansion(widened).new_parameters)
    assert moved and moved == {name for name in new if "_proj." in name or "head." in name}
    assert metrics["val_loss"] < metrics["val_loss_before"] and metrics["training_flops"] > 0


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["new", "o_proj"]])
def test_lora_of_the_old_maps_is_refused(widened, targets):
    message = f"cannot train a model widened by expand=scale.*target_modules='{re.escape(ADDED)}'"
    with pytest.raises(ValueError, match=message):
        Lora(2, 4, 0.0, targets).check(4, True, "scale_llama")
    with pytest.raises(ValueError, match=message):
        apply_strategy(Lora(2, 4, 0.0, targets), load(widened), ExpansionMap())
    Lora(2, 4, 0.0, targets).check(4, True, "llama")
