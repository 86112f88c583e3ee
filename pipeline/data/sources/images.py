"""Sources of images with an answer each."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.data.sources.archive import read_members
from pipeline.data.sources.files import Listing, Locate


class Picture(NamedTuple):
    """An image with its answer.

    Attributes:
        id: unique in its source.
        pixels: [C, H, W], uint8 (a model reads a 255th of it) or float32 (read as it is: features of an encoder).
        answer: what it shows, in words.
    """

    id: str
    pixels: np.ndarray
    answer: str


class ImageSource(Protocol):
    """Anything that gives images, with its weight in the mixture."""

    @property
    def weight(self) -> float:
        """Multiplies the source's own tokens."""

    def read(self, locate: Locate, listing: Listing) -> Iterator[Picture]:
        """Every image, in a fixed order. Raises ValueError for one that cannot be read."""


@dataclass(frozen=True)
class PixelTable:
    """Square grey images in a table of a pinned package's archive, which is read and never run.

    A row is one image: its pixels, row by row, and the number of its answer; numbers stand between commas, and there is
    no header.

    Attributes:
        source: {kind: package, name, version, filename, sha256}.
        member: the file, a .csv or .csv.gz.
        levels: the value of a white pixel; black is 0.
        answers: by number.
        weight: see `ImageSource`.
    """

    source: Mapping
    member: str
    levels: int
    answers: Sequence[str]
    weight: float

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.levels < 1:
            raise ValueError(f"weight={self.weight} and levels={self.levels} must be more than 0")

    def read(self, locate: Locate, listing: Listing) -> Iterator[Picture]:
        """See `ImageSource`."""
        for name, data in read_members(locate(dict(self.source)), [self.member]):
            for number, row in enumerate(_table(name, data)):
                yield self._picture(f"{name}:{number}", row)

    def _picture(self, identity: str, row: np.ndarray) -> Picture:
        *values, answer = row
        size, number = round(len(values) ** 0.5), int(answer)
        if size * size != len(values) or not 0 <= min(values) <= max(values) <= self.levels:
            raise ValueError(f"{identity}: {len(values)} values in [{min(values)}, {max(values)}] are no square image")
        if not 0 <= number < len(self.answers) or number != answer:
            raise ValueError(f"{identity}: answer {answer} is not the number of one of {len(self.answers)} answers")
        pixels = np.rint(np.array(values) * (255 / self.levels)).astype(np.uint8)
        return Picture(identity, pixels.reshape(1, size, size), self.answers[number])


def _table(name: str, data: bytes) -> np.ndarray:
    import gzip

    text = gzip.decompress(data) if name.endswith(".gz") else data
    try:
        return np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{name} is no table of numbers between commas: {error}") from error
