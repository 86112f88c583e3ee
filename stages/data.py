"""Stage data: documents or conversations of every source, tokenised once, with a part held out of training."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.hub import Repository, is_commit
from pipeline.engine import worker
from pipeline.typed import checked

VERSION = 2
SINGLE_PROCESS = True


def check(params: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise ValueError if the sources, their weights or the held-out part make no sense. Reads no data."""
    _build(params)
    for source in _hub_sources(params):
        if not is_commit(source["revision"]):
            warnings.warn(
                f"dataset {source['repo']} at revision {source['revision']!r}, which may move: the identity of this "
                "data is a name, not its content; put the commit (40 hexadecimal digits) in its place",
                stacklevel=2,
            )


def reach(params: dict[str, Any]) -> None:
    """Raise ValueError for a dataset of the hub that this machine cannot have; it says what to download."""
    for source in _hub_sources(params):
        Repository(source["repo"], source["revision"]).reach()


def run(context: worker.Context) -> dict[str, Any]:
    """Write the data artifact (see `pipeline.data.corpus`) and return documents, tokens and bytes by source."""
    from pipeline.data.corpus import Place
    from pipeline.engine.artifact import model_dir
    from pipeline.models import load_tokenizer

    if not context.is_main:
        return {}
    tokenizer = load_tokenizer(model_dir(context.inputs["base"]))
    params, commits = _pinned(context.params)
    place = Place(context.locate, context.listing, context.directory, context.progress, _encoding(context.launch))
    metrics = _build(params).prepare(tokenizer, place)
    return {**metrics, "commits": commits} if commits else metrics


def _encoding(launch: dict[str, Any]) -> Any:
    from pipeline.data.encoding import Encoding

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    directory = Path(launch["token_cache"]).absolute() if launch["token_cache"] else None
    return Encoding(launch["threads"] or cores, launch["word_cache"], directory)


def _hub_sources(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("kind") == "hub":
            yield node
        for value in node.values():
            yield from _hub_sources(value)


def _pinned(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The params with the commit that every moving revision stands for now, and these commits by repository."""
    params, commits = copy.deepcopy(params), {}
    for source in _hub_sources(params):
        if not is_commit(source["revision"]):
            source["revision"] = commits[source["repo"]] = Repository(source["repo"], source["revision"]).commit()
    return params, commits


def _build(params: dict[str, Any]) -> Any:
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    from pipeline.data.chats import ChatData
    from pipeline.data.text import TextData

    try:
        data = instantiate(checked(params["data"]), _convert_="all")
    except HydraException as error:
        raise ValueError(f"data: {error.__cause__ or error}") from error
    if not isinstance(data, TextData | ChatData):
        wanted = "pipeline.data.text.TextData or pipeline.data.chats.ChatData"
        raise ValueError(f"data._target_ gives {type(data).__name__}; it must be {wanted}")
    return data


if __name__ == "__main__":
    worker.main(run)
