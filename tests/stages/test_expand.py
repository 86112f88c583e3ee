"""The stage that grows the model: every method goes through it, and what is not what it claims is not committed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.engine import artifact
from pipeline.engine.graph import identify
from pipeline.engine.process import worker
from pipeline.engine.process.signals import Stop
from pipeline.engine.run.forecast import Input, Request
from pipeline.expansion import writer
from pipeline.expansion.methods.block import BlockExpansion
from pipeline.models import load
from pipeline.records.expansion import read_expansion
from stages import expand

METHODS = {
    "block": {"_target_": "pipeline.expansion.methods.block.BlockExpansion", "num_groups": 2},
    "copy": {"_target_": "pipeline.expansion.methods.block.BlockExpansion", "num_groups": 2, "init": "copy"},
    "random": {"_target_": "pipeline.expansion.methods.block.BlockExpansion", "num_groups": 2, "init": "random"},
    "adept": {
        "_target_": "pipeline.expansion.methods.adept.Adept", "num_new_blocks": 2, "window": 16, "max_tokens": 32,
        "block_rates": False,
        "general": {
            "_target_": "pipeline.data.sources.documents.Text", "weight": 1.0, "text_field": "text",
            "boundary": None, "max_symbol_fraction": None,
            "origin": {
                "_target_": "pipeline.data.sources.documents.LocalFiles", "source": {"kind": "local", "content": "x"},
            },
        },
    },
    "lesa": {
        "_target_": "pipeline.expansion.methods.lesa.Lesa", "num_groups": 2, "hidden": 8, "num_epochs": 1,
        "batch_size": 64, "lr": 1e-3, "norm_weight": 5e-5, "seed": 0,
    },
    "opt_deus": {
        "_target_": "pipeline.expansion.methods.opt_deus.OptDeus", "position": "top_half", "num_groups": None,
        "alignment": "transport", "regularisation": 0.06, "num_iterations": 1000,
    },
    **{
        f"scale, {mode}": {
            "_target_": "pipeline.expansion.methods.scale.Scale", "mode": mode, "new_features": 8,
            "new_key_value_heads": 1, "new_inner_features": 16, "init": "svd", "seed": 0,
        }
        for mode in ("preserve", "adapt")
    },
    "soft_moe": {"_target_": "pipeline.expansion.methods.soft_moe.SoftMoe", "mode": "exact"},
    "soft_moe, faithful": {"_target_": "pipeline.expansion.methods.soft_moe.SoftMoe", "mode": "faithful"},
    "mixtral": {
        "_target_": "pipeline.expansion.upcycling.mixtral.MixtralUpcycling", "num_experts": 4, "top_k": 2,
        "router_std": 0.02, "drop_ratio": 0.0, "noise": 0.0, "seed": 0,
    },
    "deepseek_moe": {
        "_target_": "pipeline.expansion.upcycling.deepseek_moe.DeepSeekMoeUpcycling", "mode": "exact", "granularity": 4,
        "num_experts": 6, "top_k": 2, "num_shared": 1, "num_dense_blocks": 1, "router_std": 0.02, "drop_ratio": 0.0,
        "noise": 0.0, "seed": 0,
    },
}  # fmt: skip
INEXACT = ("copy", "random", "lesa", "soft_moe, faithful", "mixtral")
WITHOUT_NEW_BLOCKS = ("soft_moe", "soft_moe, faithful", "mixtral", "deepseek_moe")


@pytest.fixture
def source(make_model, tmp_path):
    """A base artifact whose blocks do enough that a copy of one is seen in the logits."""
    base = tmp_path / "base"
    shutil.copytree(make_model(), base / "model")
    tensors = load_file(base / "model/model.safetensors")
    grown = {name: t * 20 if name.endswith(("o_proj.weight", "down_proj.weight")) else t for name, t in tensors.items()}
    save_file(grown, base / "model/model.safetensors", {"format": "pt"})
    (base / artifact.MANIFEST).write_text("{}")
    return base


def context(source, tmp_path, method, save="full"):
    texts, out = tmp_path / "texts", tmp_path / "out"
    for folder in (texts, out):
        folder.mkdir(exist_ok=True)
    (texts / "a.txt").write_text("The river rises in the hills and falls to the sea. " * 4)
    recorded = {}
    return SimpleNamespace(
        directory=out,
        inputs={"model": source},
        params={"method": METHODS[method], "save": save},
        launch={"architecture_cache": str(out.parent / "architectures")},
        recorded=recorded,
        record=lambda **fields: recorded.update(fields),
        progress=lambda **fields: None,
        locate=lambda source: texts,
        listing=lambda source: ["a.txt"],
    )


def requested(params, *others):
    """A request on a model of four blocks, and on one of which nothing is known in each other role."""
    inputs = {"model": Input(None, lambda: {"num_blocks": 4})} | {role: Input(None) for role in others}
    return Request(params, inputs)


@dataclasses.dataclass(frozen=True)
class Donated(BlockExpansion):
    """A method that takes two models, and some that go together."""

    roles: ClassVar = ("donor",)

    def check_models(self, facts):
        if facts("model", "num_blocks") != facts("donor", "num_blocks"):
            raise ValueError("of different depths")


def test_models_that_a_method_does_not_take_are_refused():
    params = {"method": METHODS["block"], "save": "full"}
    with pytest.raises(ValueError, match="BlockExpansion grows the model in the role model and takes no other; from"):
        expand.forecast(requested(params, "donor"))
    params["method"] = {**METHODS["block"], "_target_": f"{__name__}.Donated"}
    with pytest.raises(ValueError, match="Donated needs a model in the role donor; add it to from, as donor: NAME"):
        expand.forecast(requested(params))
    with pytest.raises(ValueError, match="of different depths"):
        expand.forecast(requested(params, "donor"))


def facts_ahead(method, kind):
    """What is foreseen of a model that this method makes of one of this `model_type`."""
    inputs = {role: Input(None, lambda: {"num_blocks": 4, "model_type": kind}) for role in ("model", "augmenting")}
    inputs = inputs if method == "calm" else {"model": inputs["model"]}
    settings = {
        **METHODS,
        "calm": {"_target_": "pipeline.expansion.methods.calm.Calm", "every": 2, "seed": 0},
        "scale": METHODS["scale, preserve"],
    }
    return expand.forecast(Request({"method": settings[method], "save": "full"}, inputs)).facts.get("model_type")


def test_what_is_foreseen_of_the_architecture():
    assert facts_ahead("block", "gpt2") == "gpt2" and facts_ahead("calm", "llama") == "calm_llama"
    assert facts_ahead("scale", "qwen3") == "scale_qwen3"
    assert facts_ahead("soft_moe", "qwen2") == "soft_moe_qwen2" and facts_ahead("soft_moe", None) is None
    with pytest.raises(ValueError, match="in the role model is of model_type='calm_llama'"):
        facts_ahead("calm", "calm_llama")


@pytest.mark.parametrize("save", expand.FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_each_method_goes_through_the_stage(source, tmp_path, method, save):
    asked = context(source, tmp_path, method, save)
    assert expand.forecast(requested(asked.params)).facts["expanded"]
    metrics = expand.run(asked)
    json.dumps([metrics, asked.recorded])  # what a manifest cannot hold fails
    assert metrics["exact"] is (method not in INEXACT)
    assert (metrics["max_abs_difference"] > 0) is (method in INEXACT)
    assert asked.recorded["proof"]["logits_equal"] is metrics["exact"]
    unchanged = method in WITHOUT_NEW_BLOCKS or method.startswith("scale")
    assert metrics["num_new_blocks"] == (0 if unchanged else 2)
    model = dict(load(tmp_path / "out/model").named_parameters())
    assert metrics["num_parameters"] == sum(p.numel() for p in model.values())
    record = read_expansion(tmp_path / "out/model")
    assert asked.recorded["new_parameters"] == list(record.new_parameters) and record.exact is metrics["exact"]
    assert metrics["num_new_parameters"] == sum(model[name].numel() for name in record.module_parameters)
    assert not (tmp_path / "out/scratch").exists()


def test_a_source_that_overflows_is_proven_in_fp32_and_the_metrics_say_so(source, make_model, tmp_path):
    tensors = load_file(make_model("float16") / "model.safetensors")
    for name in ("gate_proj", "up_proj", "down_proj"):
        tensors[f"model.layers.1.mlp.{name}.weight"].sign_().mul_(30)
    shutil.rmtree(source / "model")
    shutil.copytree(make_model("float16"), source / "model")
    save_file(tensors, source / "model/model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="the source overflows in float16"):
        metrics = expand.run(context(source, tmp_path, "block"))
    assert metrics["exact"] and metrics["max_abs_difference"] == 0 and metrics["proof_dtype"] == "float32"
    assert metrics["proof_note"].startswith("compared in float32 because the source overflows in float16")


def sabotaged(plan, source, target, **settings):
    """The writer, and a bit of noise in a residual writer that should be zero."""
    written = writer_of_old(plan, source, target, **settings)
    tensors = load_file(target / "model.safetensors")
    name = next(name for name in plan.new_parameters if name.endswith("down_proj.weight"))
    tensors[name] = torch.full_like(tensors[name], 1e-2)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return written


writer_of_old = writer.write_expansion


def test_what_claims_to_be_exact_and_is_not_fails_and_is_not_committed(source, tmp_path, monkeypatch):
    """Through the worker, which commits what a stage returns from."""
    monkeypatch.setattr(writer, "write_expansion", sabotaged)
    params = {"method": METHODS["block"], "save": "full"}
    config = {
        "stage": "expand", "label": "", "version": expand.STAGE.version, "params": params, "launch": {},
        "argv": ["test"],
        "inputs": {"model": {"fingerprint": "0" * 64, "directory": str(source)}},
    }  # fmt: skip
    config["fingerprint"] = identify("expand", expand.STAGE.version, params, {"model": "0" * 64})
    partial = tmp_path / "expand-x.partial"
    partial.mkdir()
    (partial / artifact.CONFIG).write_text(yaml.safe_dump(config))
    with (
        Stop().handling() as stop,
        pytest.raises(ValueError, match=r"is not identical to its source: .*'logits_equal': False"),
    ):
        worker._one(expand.run, partial, lambda event: None, stop, is_main=True)
    assert not artifact.is_committed(tmp_path / "expand-x") and not (partial / artifact.MANIFEST).exists()
    monkeypatch.setattr(writer, "write_expansion", writer_of_old)
    with Stop().handling() as stop:  # the same attempt again, with nothing in its way
        worker._one(expand.run, partial, lambda event: None, stop, is_main=True)
    assert artifact.is_committed(tmp_path / "expand-x")
