"""Stage data: documents or conversations of every source, tokenised once, with a part held out of training."""

from __future__ import annotations

from typing import Any

from pipeline.engine import worker

VERSION = 1
SINGLE_PROCESS = True


def check(params: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise ValueError if the sources, their weights or the held-out part make no sense. Reads no data."""
    _build(params)


def run(context: worker.Context) -> dict[str, Any]:
    """Write the data artifact (see `pipeline.data.corpus`) and return documents, tokens and bytes by source."""
    from pipeline.data.corpus import Place
    from pipeline.engine.artifact import model_dir
    from pipeline.models import load_tokenizer

    if not context.is_main:
        return {}
    tokenizer = load_tokenizer(model_dir(context.inputs["base"]))
    place = Place(context.locate, context.listing, context.directory, context.progress)
    return _build(context.params).prepare(tokenizer, place)


def _build(params: dict[str, Any]) -> Any:
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    from pipeline.data.chats import ChatData
    from pipeline.data.text import TextData

    try:
        data = instantiate(params["data"], _convert_="all")
    except HydraException as error:
        raise ValueError(f"data: {error.__cause__ or error}") from error
    if not isinstance(data, TextData | ChatData):
        wanted = "pipeline.data.text.TextData or pipeline.data.chats.ChatData"
        raise ValueError(f"data._target_ gives {type(data).__name__}; it must be {wanted}")
    return data


if __name__ == "__main__":
    worker.main(run)
