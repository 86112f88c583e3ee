"""Grow the model: plan, stream, prove. LLaMA Pro, section 3.2."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class

from pipeline.engine.artifact import model_dir
from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.stage import ANY_ROLE, Stage
from pipeline.instantiation import build
from pipeline.models.architecture.facts import model_facts

if TYPE_CHECKING:
    from pipeline.expansion.base import Plan
    from pipeline.expansion.verify import Proof

FORMS = ("full", "delta")


@dataclass(frozen=True)
class Params:
    """`method` names a class of `pipeline.expansion` by `_target_`; `save` is the form of the result, see FORMS."""

    method: Mapping[str, Any]
    save: str


STAGE = Stage(
    version=3,
    makes="model",
    inputs={"model": "model", ANY_ROLE: "model"},
    params=Params,
    single_process=True,
    proves_identity=True,
)


def params_of(section: dict[str, Any]) -> dict[str, Any]:
    """The method, and in which form its result is saved."""
    return {"method": {key: value for key, value in section.items() if key != "save"}, "save": section["save"]}


def settle(section: dict[str, Any], fact: Callable[[str], Any]) -> dict[str, Any]:
    """The section with the method's own settings for `num_blocks` new blocks in all, where that is given."""
    if (total := section.pop("num_blocks", None)) is None:
        return section
    if type(total) is not int or total < 1:
        raise ValueError(f"num_blocks={total!r} must be a whole number of at least 1, or null")
    method = get_class(section["_target_"])
    if not hasattr(method, "settings_for"):
        raise ValueError(f"num_blocks is not a setting of {method.__name__}, which does not count new blocks")
    return dict(method.settings_for(section, total, fact("num_blocks")))


def forecast(request: Request) -> Forecast:
    """Ask the method whether it fits a model of this depth; what the method knows of its result."""
    if (save := request.params["save"]) not in FORMS:
        raise ValueError(f"save={save!r} is not known; use one of {', '.join(FORMS)}")
    expansion = build(request.params["method"], "expand")
    if (num_blocks := request.fact("num_blocks")) is not None:
        expansion.check(num_blocks)
    _check_models(expansion, request)
    kept = {key: request.fact(key) for key in ("max_position_embeddings", "chat_template", "vocabulary", "num_patches")}
    told: dict[str, Any] = getattr(expansion, "facts_of", lambda _: {})(ModelFacts(request))
    return Forecast({**kept, "num_blocks": None, "shape": None, "expanded": True, **told})


@dataclass(frozen=True)
class ModelFacts:
    """What is known, before any work, of the models that an expansion is made of."""

    request: Request

    @property
    def roles(self) -> tuple[str, ...]:
        """Of those beside "model"."""
        return tuple(role for role in self.request.inputs if role != "model")

    def __call__(self, role: str, key: str) -> Any:
        """A fact; None where it is not known. "derived": whether the lineage made that model from the first one."""
        return self.request.derived.get(role) if key == "derived" else self.request.fact(key, role)


def _check_models(expansion: Any, request: Request) -> None:
    """The method takes the models that the lineage gives it, and they go together."""
    facts = ModelFacts(request)
    roles, name = getattr(expansion, "roles", ()), type(expansion).__name__
    if extra := [role for role in facts.roles if role not in roles and ANY_ROLE not in roles]:
        takes = f"one in the role {' and '.join(roles)} beside it" if roles else "no other"
        raise ValueError(f"{name} grows the model in the role model and takes {takes}; from has {', '.join(extra)}")
    if missing := [role for role in roles if role not in (*facts.roles, ANY_ROLE)]:
        raise ValueError(f"{name} needs a model in the role {missing[0]}; add it to from, as {missing[0]}: NAME")
    getattr(expansion, "check_models", lambda _: None)(facts)


def facts(directory: Path) -> Mapping[str, Any]:
    """See `model_facts`."""
    return model_facts(model_dir(directory))


def run(context: worker.Context) -> dict[str, Any]:
    """Write the expanded model, load it again, and fail unless it computes exactly what its source does.

    A method that does not claim to be exact is compared too, and how far it is off is kept; of a mix, which is meant to
    differ, it stands in the proof alone.
    """
    from pipeline.data.corpus import Workspace
    from pipeline.expansion.source import read_source
    from pipeline.expansion.verify import verify_identity
    from pipeline.expansion.writer import write_expansion
    from pipeline.reporting.figures.stack_figure import write_inspection
    from pipeline.reporting.stack import read_stack

    target, scratch = context.directory / "model", context.directory / "scratch"
    scratch.mkdir(exist_ok=True)
    expansion = build(context.params["method"], "expand")
    memory = context.launch.get("architecture_cache")
    directories = {role: model_dir(directory) for role, directory in context.inputs.items()}
    source = read_source(directories.pop("model"), Path(memory).absolute() if memory else None, directories)
    context.progress(note="planning")
    plan = expansion.plan(source, Workspace(context.locate, context.listing, scratch, context.progress))
    context.progress(note="writing")
    source.anatomy.save()
    plan = write_expansion(plan, source, target, save=context.params["save"])
    shutil.rmtree(scratch)
    context.progress(note="verifying: logits with and without cache, generation")
    proof = verify_identity(source.directory, target, in_fp32=plan.tolerance is not None)
    context.record(proof=proof.record())
    if plan.exact and not plan.is_carried_over and not proof.exact:
        raise ValueError(_unequal(proof))
    if plan.tolerance is not None:
        _check_tolerance(plan, proof, source.directory)
    context.record(expansion=plan.to_json(), new_parameters=list(plan.new_parameters))
    stack = read_stack(target)
    if stack is not None:
        write_inspection(stack, context.directory)
    distance = {"exact": proof.exact} if plan.is_carried_over else _distance(proof)
    return {**_counts(target, plan, source.anatomy.num_blocks), **distance}


def _counts(target: Path, plan: Plan, num_source_blocks: int) -> dict[str, int]:
    from pipeline.models.files.safetensors_io import read_index
    from pipeline.models.files.tensor_file import ITEM_BITS

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


def _check_tolerance(plan: Plan, proof: Proof, source: Path) -> None:
    """Deep models with large logits round by more than any fixed number: what the source itself rounds is allowed."""
    from pipeline.expansion.verify import rounding_of

    assert plan.tolerance is not None
    if proof.max_abs_difference <= plan.tolerance:
        return
    rounding = rounding_of(source)
    if not proof.max_abs_difference <= rounding:
        raise ValueError(
            f"the expanded model's logits differ by up to {proof.max_abs_difference:.3g} in float32, {plan.method} "
            f"claims at most {plan.tolerance:g}, and the source's own are rounded by {rounding:.3g}: {proof.record()}"
        )


def _unequal(proof: Proof) -> str:
    if proof.overflows_alone:
        return (
            f"the expanded model overflows where its source does not ({proof.note}); save the source in bfloat16 or "
            "float32 and expand that"
        )
    return f"the expanded model is not identical to its source: {proof.record()}"


if __name__ == "__main__":
    worker.main(run)
