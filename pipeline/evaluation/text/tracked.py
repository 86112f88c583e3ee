"""What training measures along a run, see `pipeline.training.tracking`: few texts, chosen without regard to a model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from pipeline.data.tokens.vocabulary import check_rows
from pipeline.evaluation.base import Workspace
from pipeline.evaluation.text.base_samples import read_samples
from pipeline.evaluation.text.drift import passage_of
from pipeline.evaluation.text.passages import Passage
from pipeline.evaluation.text.perplexity import HeldOutText


def tracked_texts(
    name: str, inputs: Mapping[str, Path], tokenizer: Any, num_rows: int, track: Mapping[str, Any]
) -> list[Passage]:
    """The texts of a measure.

    Args:
        name: "domain" or "drift".
        inputs: `domain`: a data artifact; `samples`: what a base wrote.
        num_rows: of the model's embedding.
        track: bounds, see `pipeline.training.tracking.track.Track`.

    Raises:
        ValueError: a token has no row, or there is no text.
    """
    if name == "domain":
        passages = _documents(inputs["domain"], tokenizer, num_rows, track["domain_tokens"], track["document_tokens"])
    else:
        passages = _samples(inputs["samples"], track["drift_tokens"])
    for passage in passages:
        check_rows(passage.tokens, num_rows, f"{name}, item {passage.id!r}", tokenizer)
    if not passages:
        raise ValueError(f"track.measures: there is no text for {name}")
    return passages


def _documents(data: Path, tokenizer: Any, num_rows: int, num_tokens: int, each: int) -> list[Passage]:
    """Of the smallest content hashes, as the benchmark `domain` takes them."""
    bounds: dict[str, Any] = {"window": each, "max_document_tokens": each, "max_tokens": num_tokens, "max_items": None}
    text = HeldOutText(documents=None, sources=None, **bounds)
    return text.passages(tokenizer, num_rows, Workspace(_nothing, _nothing, data))


def _samples(directory: Path, num_tokens: int) -> list[Passage]:
    """Samples of each kind in turn, up to `num_tokens` tokens written by the base; at least one sample."""
    samples = read_samples(directory)
    kinds = [[one for one in samples if one.kind == kind] for kind in dict.fromkeys(one.kind for one in samples)]
    chosen: list[Passage] = []
    total = 0
    for sample in filter(None, chain.from_iterable(zip_longest(*kinds))):
        total += len(sample.tokens)
        if chosen and total > num_tokens:
            break
        chosen.append(passage_of(sample))
    return chosen


def _nothing(source: Mapping[str, Any]) -> Any:
    raise ValueError(f"held-out documents need no source, found {source!r}")
