"""From texts to what is measured on them: packed rows, and what their sum is divided by."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pipeline.data.packing.rows import Span, build_row
from pipeline.data.tokens.store import TokenStore
from pipeline.training.runtime import Row
from pipeline.training.tracking.track import DRIFT, Track


class Text(Protocol):
    """Tokens, for each whether it is scored (the first never is), and the UTF-8 bytes of what is scored."""

    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def scored(self) -> Sequence[bool]: ...
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True)
class Measure:
    """The sum over the labels of some rows, divided by a number.

    Attributes:
        divisor: of nats: bytes times ln 2 for bits per byte, or scored tokens.
        of_base: the sum is that of KL(base || model), and not the loss.
    """

    name: str
    rows: Sequence[Row]
    divisor: float
    of_base: bool


@dataclass(frozen=True)
class Tracking:
    """What a run is to track.

    Attributes:
        base: the directory of the model that drift is measured from; None where no measure needs it.
    """

    track: Track
    measures: Sequence[Measure]
    base: Path | None


@dataclass(frozen=True)
class BaseValues:
    """What is kept of the base: its logits on this process's rows of every measure `of_base`, in main memory, and its
    own values of the others.
    """

    logits: Mapping[str, list[torch.Tensor]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


def measure_of(name: str, texts: Sequence[Text], seq_len: int) -> Measure:
    """One of `UNITS` on these texts; those longer than a row are left out, and that is said.

    Raises:
        ValueError: no text fits into a row.
    """
    fitting = [text for text in texts if _length(text) <= seq_len]
    if not fitting:
        raise ValueError(f"track.measures: {name} has no text that fits into a row of seq_len={seq_len}")
    if left := len(texts) - len(fitting):
        warnings.warn(f"track: {left} of {len(texts)} texts of {name} are longer than a row and left out", stacklevel=2)
    of_base = name == DRIFT
    divisor = sum(map(_num_scored, fitting)) if of_base else math.log(2) * sum(text.num_bytes for text in fitting)
    return Measure(name, _packed(fitting, seq_len), float(divisor), of_base)


def _packed(texts: Sequence[Text], seq_len: int) -> list[Row]:
    """Rows of one length, that of a row of training or less, each text in the first where it fits."""
    lengths = [_length(text) for text in texts]
    size, rows = min(seq_len, sum(lengths)), list[list[int]]()
    for index, length in enumerate(lengths):
        fits = (row for row in rows if sum(lengths[one] for one in row) + length <= size)
        if (row := next(fits, None)) is None:
            rows.append([index])
        else:
            row.append(index)
    tokens = np.concatenate([np.asarray(text.tokens, dtype=np.int64) for text in texts])
    scored = np.concatenate([np.asarray(text.scored, dtype=np.uint8) for text in texts])
    store = TokenStore("tracked", tokens, np.cumsum([0, *(len(text.tokens) for text in texts)]), scored)
    return [build_row([Span(0, index, 0, lengths[index]) for index in row], [store], size) for row in rows]


def _length(text: Text) -> int:
    """Of what a model reads: the last scored token is a label alone."""
    return max(index for index, is_scored in enumerate(text.scored) if is_scored)


def _num_scored(text: Text) -> int:
    return sum(text.scored)
