"""Reading a data artifact for training: a stream of rows, and rows of its held-out part for validation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.template import TemplateSettings
from pipeline.data.corpus import read_sources
from pipeline.data.images import held_out_rows, open_image_stream
from pipeline.data.packing.examples import ExampleStream
from pipeline.data.packing.mixture import PackedStream, Packing
from pipeline.data.packing.rows import Overlong, Span, build_row, cut
from pipeline.data.packing.schedule import Replay, Shares, check_replay
from pipeline.data.tokens.store import TokenStore, open_store
from pipeline.data.tokens.text_encoder import TextEncoder

BATCH_UNITS = {"rows": PackedStream, "examples": ExampleStream}
"""What a batch counts: rows of seq_len tokens, or examples, which are packed into as few rows as will do."""


def open_stream(
    directory: Path,
    seq_len: int,
    seed: int,
    overlong: Overlong | None = None,
    packing: Packing | None = None,
    shares: Shares = None,
    replay: Replay = None,
    batch_unit: str = "rows",
) -> PackedStream:
    """The mixture of all sources in a data artifact, packed; `overlong` is given for chats and only for them.

    batch_unit: what a batch counts, see `BATCH_UNITS`.

    shares, replay: see `schedule.schedule`; general text is opened only where some of it is asked for.

    Raises:
        ValueError: chats where text is expected or the other way round, or replay without general text.
    """
    manifest = read_sources(directory)
    check_kind(manifest["kind"], overlong)
    if manifest["kind"] == "image":
        check_replay(replay, False)
        return open_image_stream(directory, seq_len, seed, packing, shares)
    general = manifest.get("replay") or {} if replay else {}
    check_replay(replay, bool(general))
    sources = {**manifest["sources"], **general}
    stores = [open_store(directory, name) for name in sources]
    weights = {name: source["weight"] for name, source in sources.items()}
    return BATCH_UNITS[batch_unit](
        stores, weights, seq_len, seed, overlong, packing=packing, shares=shares, replay=replay, general=list(general)
    )


def check_kind(kind: str | None, overlong: Overlong | None) -> None:
    """Raise ValueError for data that a stage does not train on; kind None: not known, overlong: see `open_stream`."""
    kinds = ("text", "image") if overlong is None else ("chat",)
    if kind not in (None, *kinds):
        raise ValueError(
            f"this stage trains on {' or '.join(kinds)} data, but its data is of kind {kind}; pretrain takes texts and "
            "images, sft conversations"
        )


def stream_ahead(
    data: Path | None, params: Mapping[str, Any], mixing: Sequence[str]
) -> Callable[[], PackedStream] | None:
    """Returns what opens the stream that a stage will train on; None for data that are not prepared.

    params: of the stage; mixing: those of its keys that `open_stream` takes.
    """
    if data is None:
        return None
    return lambda: open_stream(data, params["seq_len"], params["seed"], **{key: params[key] for key in mixing})


def unused(directory: Path) -> dict[str, Any]:
    """What a data artifact did not use, for the metrics of a stage that trains on it: rows rejected and left out, by
    source and reason; keys of rows that nothing reads, if there are any, by source and path; and the overlap with
    evaluation sets where it was looked for."""
    manifest = read_sources(directory)
    sources = {**manifest["sources"], **(manifest.get("replay") or {})}
    found: dict[str, Any] = {
        kind: {name: source.get(kind, {}) for name, source in sources.items()} for kind in ("rejected", "left_out")
    }
    if ignored := {name: source["ignored_keys"] for name, source in sources.items() if source.get("ignored_keys")}:
        found["ignored_keys"] = ignored
    if thoughts := {name: number for name, one in sources.items() if (number := one.get("reasoning_left_out"))}:
        found["reasoning_left_out"] = thoughts
    return {**found, "overlap": manifest["overlap"]} if "overlap" in manifest else found


def validation_rows(directory: Path, tokenizer: Any, seq_len: int, num_tokens: int) -> dict[str, list[dict]]:
    """Packed rows of held-out documents, by source: about `num_tokens` in all, the same for every model.

    The documents are the first of each source's held-out file, each in spans of at most `seq_len`, a row of its own per
    span where it is full, so that no row of validation depends on another document.
    """
    manifest = read_sources(directory)
    if manifest["kind"] == "image":
        return held_out_rows(directory, seq_len, num_tokens)
    per_source = num_tokens // len(manifest["sources"])
    is_chat = manifest["kind"] == "chat"
    encoder = ChatEncoder(tokenizer, TemplateSettings.recorded(manifest)) if is_chat else TextEncoder(tokenizer)
    return {
        name: _rows(_held_out(directory / f"{name}.heldout.jsonl", encoder), seq_len, per_source)
        for name in manifest["sources"]
    }


def keep_chat_template(directory: Path, tokenizer: Any, model: Path) -> None:
    """Write what the chats were rendered with into a model directory whose tokenizer has other templates or none.

    Args:
        directory: a data artifact of chats.
        tokenizer: the one that `model` was saved with.
        model: a `save_pretrained` directory; its `chat_template.jinja` and `additional_chat_templates` are written.
    """
    from transformers.utils import CHAT_TEMPLATE_DIR, CHAT_TEMPLATE_FILE

    template = read_sources(directory)["chat_template"]
    if template == tokenizer.chat_template:
        return
    named = {"default": template} if isinstance(template, str) else template
    more = model / CHAT_TEMPLATE_DIR
    for file in more.glob("*.jinja"):
        file.unlink()
    for name, text in named.items():
        file = model / CHAT_TEMPLATE_FILE if name == "default" else more / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _held_out(file: Path, encoder: ChatEncoder | TextEncoder) -> Iterator[TokenStore]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            if isinstance(encoder, ChatEncoder):
                tokens, targets = encoder.encode(entry["messages"], entry.get("tools") or (), entry.get("options"))
            else:
                tokens, targets = np.array(encoder.document(entry["text"]), dtype=np.int64), None
            yield TokenStore(file.stem, tokens, np.array([0, len(tokens)]), targets)


def _rows(documents: Iterator[TokenStore], seq_len: int, num_tokens: int) -> list[dict]:
    rows: list[dict] = []
    taken = 0
    # A document gives at most two rows: many short looks say more than one long file.
    for store in documents:
        for _, start, stop in cut(store.lengths, seq_len)[:2].tolist():
            if taken >= num_tokens:
                return rows
            rows.append(build_row([Span(0, 0, start, stop)], [store], seq_len))
            taken += stop - start
    return rows
