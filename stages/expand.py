"""Grow the model: plan, stream, prove. LLaMA Pro, section 3.2."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate

from pipeline.engine import worker

VERSION = 1
SINGLE_PROCESS = True


def check(params: dict[str, Any], facts: dict[str, Any]) -> None:
    """Ask the method whether it can be applied to a model of this depth."""
    expansion = instantiate(params["method"], _convert_="all")
    if facts.get("num_blocks") is not None:
        expansion.check(facts["num_blocks"])


def run(context: worker.Context) -> dict[str, Any]:
    """Write the expanded model, load it again, and fail unless it computes exactly what its source does."""
    from pipeline.engine.artifact import model_dir
    from pipeline.expansion.verify import verify_identity
    from pipeline.expansion.writer import write_expansion
    from pipeline.models.directory import read_config, read_expansion
    from pipeline.models.safetensors_io import ITEM_BITS, read_index

    source, target = model_dir(context.inputs["model"]), context.directory / "model"
    expansion = instantiate(context.params["method"], _convert_="all")
    config, stored = read_config(source), read_index(source)
    context.progress(note="writing")
    plan = write_expansion(expansion.plan(stored, config, read_expansion(source)), source, target)
    metrics: dict[str, Any] = {}
    if plan.exact:
        context.progress(note="verifying: logits with and without cache, generation")
        proof = verify_identity(source, target)
        context.record(proof=proof.record())
        if not proof.exact:
            raise ValueError(f"the expanded model is not identical to its source: {proof.record()}")
        metrics["max_abs_difference"] = proof.max_abs_difference
    context.record(expansion=plan.record(), new_parameters=list(plan.new_parameters))
    sizes = {name: t.num_bytes * 8 // ITEM_BITS[t.dtype] for name, t in read_index(target).items()}
    return {
        "num_blocks": plan.config["num_hidden_layers"],
        "num_new_blocks": plan.config["num_hidden_layers"] - config["num_hidden_layers"],
        "num_parameters": sum(sizes.values()),
        "num_new_parameters": sum(sizes[name] for name in plan.new_parameters),
        **metrics,
    }


if __name__ == "__main__":
    worker.main(run)
