"""Stage data: documents or conversations of every source, tokenised once, with a part held out of training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cores import allowed_cores
from pipeline.data.sources.hub import Repository, is_commit
from pipeline.engine.process import worker
from pipeline.engine.run.forecast import Forecast, Request
from pipeline.engine.sources.kinds import sources
from pipeline.engine.stage import Stage
from pipeline.instantiation import build


@dataclass(frozen=True)
class Params:
    """`data`: the section that names a class of `pipeline.data` by `_target_`."""

    data: Mapping[str, Any]


STAGE = Stage(
    version=2,
    makes="data",
    inputs={"base": "model"},
    params=Params,
    reads_sources=True,
    single_process=True,
)


def forecast(request: Request) -> Forecast:
    """Refuse sources, weights or a held-out part that make no sense; tell the names of the sources.

    Of data on this machine it reads the first rows.
    """
    from pipeline.data.first_rows import check_first_rows
    from pipeline.data.images import ImageData
    from pipeline.data.text import TextData

    key = request.settings.get("key", "data")
    built = _build(request.params, key)
    for _, source in sources(request.params, "hub"):
        if not is_commit(source["revision"]):
            warnings.warn(
                f"dataset {source['repo']} at revision {source['revision']!r}, which may move: the identity of this "
                "data is a name, not its content; put the commit (40 hexadecimal digits) in its place",
                stacklevel=2,
            )
    if request.settings.get("locations"):
        check_first_rows(built, request.path, request.names, key)
    data = request.params["data"]
    facts = {"sources": sorted(data.get("sources") or {}), "replay": bool(data.get("replay"))}
    if isinstance(built, ImageData):
        return Forecast(facts | {"kind": "image", "num_patches": built.num_patches})
    return Forecast(facts | {"kind": "text" if isinstance(built, TextData) else "chat"})


def facts(directory: Path) -> Mapping[str, Any]:
    """The names of the sources, whether there is general text to replay, the kind (text, chat or image), and of images
    in how many patches each is."""
    from pipeline.data.corpus import read_sources

    found = read_sources(directory)
    patches = {"num_patches": found["num_patches"]} if found["kind"] == "image" else {}
    return {"sources": sorted(found["sources"]), "replay": bool(found.get("replay")), "kind": found["kind"], **patches}


def check_network(params: dict[str, Any]) -> None:
    """Raise ValueError for a dataset of the hub that this machine cannot have; it says what to download."""
    for _, source in sources(params, "hub"):
        Repository(source["repo"], source["revision"]).reach()


def run(context: worker.Context) -> dict[str, Any]:
    """Write the data artifact (see `pipeline.data.corpus`) and return documents, tokens and bytes by source."""
    from pipeline.data.corpus import Workspace
    from pipeline.engine.artifact import model_dir
    from pipeline.models import load_tokenizer
    from pipeline.models.architecture.embedding import embedding_rows

    if not context.is_main:
        return {}
    params, commits = _pinned(context.params)
    base, encoding = model_dir(context.inputs["base"]), _encoding(context.launch)
    place = Workspace(
        context.locate, context.listing, context.directory, context.progress, encoding, embedding_rows(base)
    )
    metrics = _build(params).prepare(load_tokenizer(base), place)
    return {**metrics, "commits": commits} if commits else metrics


def _encoding(launch: dict[str, Any]) -> Any:
    from pipeline.data.tokens.encoding import Encoding

    directory = Path(launch["token_cache"]).absolute() if launch["token_cache"] else None
    return Encoding(launch["threads"] or allowed_cores(), launch["word_cache"], directory)


def _pinned(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The params with the commit that every moving revision stands for now, and these commits by repository."""
    params, commits = copy.deepcopy(params), {}
    for _, source in sources(params, "hub"):
        if not is_commit(source["revision"]):
            source["revision"] = commits[source["repo"]] = Repository(source["repo"], source["revision"]).commit()
    return params, commits


def _build(params: Mapping[str, Any], key: str = "data") -> Any:
    """The data of these params; `key` is where they stand in the config."""
    from pipeline.data.chats import ChatData
    from pipeline.data.images import ImageData
    from pipeline.data.text import TextData

    data = build(params["data"], key)
    if not isinstance(data, TextData | ChatData | ImageData):
        wanted = "pipeline.data.text.TextData, pipeline.data.chats.ChatData or pipeline.data.images.ImageData"
        raise ValueError(f"data._target_ gives {type(data).__name__}; it must be {wanted}")
    return data


if __name__ == "__main__":
    worker.main(run)
