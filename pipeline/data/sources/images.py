"""Sources of images with an answer each."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class PictureFiles:
    """Image files of a folder, and a file of JSON lines that says what each shows: {"image": "a.png", "answer": "cat"}.

    Attributes:
        source: {kind: local, path, include, exclude}.
        rows: the name of that file, in the folder.
        num_channels: 1 (grey) or 3 (red, green, blue), into which an image is converted.
        image_size: pixels of a side; an image of other sides is refused, since how to cut or scale it is a choice.
        weight: see `ImageSource`.
    """

    source: Mapping
    rows: str
    num_channels: int
    image_size: int
    weight: float

    def __post_init__(self) -> None:
        if self.num_channels not in (1, 3) or self.image_size < 1 or not self.weight > 0:
            raise ValueError(
                f"num_channels={self.num_channels} must be 1 or 3, image_size={self.image_size} at least 1 and "
                f"weight={self.weight} more than 0"
            )

    def read(self, locate: Locate, listing: Listing) -> Iterator[Picture]:
        """See `ImageSource`."""
        root, names = locate(dict(self.source)), set(listing(dict(self.source)))
        if self.rows not in names:
            raise ValueError(f"{root} has no {self.rows}: a line for each image, {{'image': 'a.png', 'answer': 'cat'}}")
        for number, line in enumerate((root / self.rows).read_text(encoding="utf-8").splitlines(), start=1):
            where = f"{self.rows}:{number}"
            try:
                row = json.loads(line)
                name, answer = str(row["image"]), str(row["answer"]).strip()
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{where} is no object with image and answer: {line[:80]!r}") from error
            if name not in names or not answer:
                raise ValueError(f"{where}: image {name!r} is not among the folder's files, or its answer is empty")
            yield Picture(where, self._pixels(root / name), answer)

    def _pixels(self, file: Path) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(file) as opened:
                image = opened.convert("L" if self.num_channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file.name} is no image that can be read: {error}") from error
        if image.size != (self.image_size, self.image_size):
            width, height = image.size
            raise ValueError(
                f"{file.name} has {width} x {height} pixels, and image_size={self.image_size} is asked for; bring all "
                "images to one square size"
            )
        return np.asarray(image, dtype=np.uint8).reshape(self.image_size, self.image_size, -1).transpose(2, 0, 1)


def _table(name: str, data: bytes) -> np.ndarray:
    import gzip

    text = gzip.decompress(data) if name.endswith(".gz") else data
    try:
        return np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{name} is no table of numbers between commas: {error}") from error
