"""Grow the model: plan, stream, prove. LLaMA Pro, section 3.2."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate

from pipeline.engine import worker
from pipeline.engine.outlook import Ahead, Outlook
from pipeline.typed import checked

if TYPE_CHECKING:
    from pipeline.expansion.base import Plan
    from pipeline.expansion.verify import Proof

VERSION = 3
SINGLE_PROCESS = True
FORMS = ("whole", "reference")


def check(params: dict[str, Any], facts: dict[str, Any]) -> None:
    """Ask the method whether it can be applied to a model of this depth."""
    if params["save"] not in FORMS:
        raise ValueError(f"save={params['save']!r} is not known; use one of {', '.join(FORMS)}")
    expansion = instantiate(checked(params["method"]), _convert_="all")
    if facts.get("num_blocks") is not None:
        expansion.check(facts["num_blocks"])


def outlook(ahead: Ahead) -> Outlook:
    """The shape of the grown model, for methods whose new blocks' places are known beforehand."""
    from pipeline.expansion.layout import Layout
    from pipeline.models.shape import read_shape

    shape = ahead.model("shape", read_shape)
    expansion = instantiate(ahead.params["method"], _convert_="all")
    if shape is None or not isinstance(expansion, Layout):
        return Outlook()
    stack = [(slot.source, slot.new) for slot in expansion.slots(len(shape.blocks))]
    return Outlook({"shape": shape.grown(stack)})


def run(context: worker.Context) -> dict[str, Any]:
    """Write the expanded model, load it again, and fail unless it computes exactly what its source does.

    A method that does not claim to be exact is compared too, and how far it is off is kept.
    """
    from pipeline.data.corpus import Place
    from pipeline.engine.artifact import model_dir
    from pipeline.expansion.base import read_source
    from pipeline.expansion.verify import verify_identity
    from pipeline.expansion.writer import write_expansion
    from pipeline.reporting.stack import read_stack
    from pipeline.reporting.stack_figure import write_inspection

    target, scratch = context.directory / "model", context.directory / "scratch"
    scratch.mkdir(exist_ok=True)
    expansion = instantiate(context.params["method"], _convert_="all")
    memory = context.launch.get("architecture_cache")
    source = read_source(model_dir(context.inputs["model"]), Path(memory).absolute() if memory else None)
    context.progress(note="planning")
    plan = expansion.plan(source, Place(context.locate, context.listing, scratch, context.progress))
    context.progress(note="writing")
    source.anatomy.save()
    plan = write_expansion(plan, source, target, save=context.params["save"])
    shutil.rmtree(scratch)
    context.progress(note="verifying: logits with and without cache, generation")
    proof = verify_identity(source.directory, target)
    context.record(proof=proof.record())
    if plan.exact and not proof.exact:
        raise ValueError(_unequal(proof))
    context.record(expansion=plan.record(), new_parameters=list(plan.new_parameters))
    stack = read_stack(target)
    if stack is not None:
        write_inspection(stack, context.directory)
    return {**_counts(target, plan, source.anatomy.num_blocks), **_distance(proof)}


def _counts(target: Path, plan: Plan, num_source_blocks: int) -> dict[str, int]:
    from pipeline.models.safetensors_io import ITEM_BITS, read_index

    sizes = {name: t.num_bytes * 8 // ITEM_BITS[t.dtype] for name, t in read_index(target).items()}
    buffers = set(plan.buffers)
    num_blocks = len(plan.stack) or num_source_blocks
    return {
        "num_blocks": num_blocks,
        "num_new_blocks": num_blocks - num_source_blocks,
        "num_parameters": sum(size for name, size in sizes.items() if name not in buffers),
        "num_new_parameters": sum(sizes[name] for name in plan.new_parameters),
    }


def _distance(proof: Proof) -> dict[str, Any]:
    return {
        "exact": proof.exact,
        "max_abs_difference": proof.max_abs_difference,
        "proof_dtype": proof.dtype,
        "proof_note": proof.note,
    }


def _unequal(proof: Proof) -> str:
    if proof.overflows_alone:
        return (
            f"the expanded model overflows where its source does not ({proof.note}); save the source in bfloat16 or "
            "float32 and expand that"
        )
    return f"the expanded model is not identical to its source: {proof.record()}"


if __name__ == "__main__":
    worker.main(run)
