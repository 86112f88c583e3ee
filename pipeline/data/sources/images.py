"""Sources of images with an answer each."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from pipeline.data.sources.archive import read_members
from pipeline.data.sources.files import Listing, Locate
from pipeline.data.sources.json_rows import decode, parse_json

if TYPE_CHECKING:
    from PIL import Image


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
        if (text := decode((root / self.rows).read_bytes())) is None:
            raise ValueError(f"{self.rows} is no UTF-8 text; save it as UTF-8")
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f"{self.rows}:{number}"
                name, answer = _row(where, line)
                if name not in names or not answer:
                    raise ValueError(f"{where}: image {name!r} is not among the folder's files, or its answer is empty")
                yield Picture(where, self._pixels(root / name), answer)

    def _pixels(self, file: Path) -> np.ndarray:
        image = _opened(file).convert("L" if self.num_channels == 1 else "RGB")
        if image.size != (self.image_size, self.image_size):
            width, height = image.size
            raise ValueError(
                f"{file.name} has {width} x {height} pixels, and image_size={self.image_size} is asked for; bring all "
                "images to one square size"
            )
        return np.asarray(image, dtype=np.uint8).reshape(self.image_size, self.image_size, -1).transpose(2, 0, 1)


def _row(where: str, line: str) -> tuple[str, str]:
    """The name of an image file, and what it shows."""
    try:
        row = parse_json(line)
        name, answer = row["image"], row["answer"]
        if type(answer) in (int, float):
            answer = str(answer)
        if not (isinstance(name, str) and isinstance(answer, str)):
            raise TypeError("image and answer must be text")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where} is no object with image and answer, a file's name and a text: {line[:80]!r} ({error}); a row "
            "without an image belongs into data of text"
        ) from error
    return name, answer.strip()


def _opened(file: Path) -> Image.Image:
    """An image, turned as its camera was held.

    Raises:
        ValueError: it is none, or one of which a model would not read what is seen.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            num_frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)  # a photo with its preview
            image = ImageOps.exif_transpose(opened)
    except Exception as error:  # each format's decoder has errors of its own
        raise ValueError(f"{file.name} is no image that can be read: {error}") from error
    if num_frames > 1:
        raise ValueError(f"{file.name} has {num_frames} frames, and a model reads one image; save one of them")
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{file.name} has values of more than 8 bits (mode {image.mode}); save it with 8 bits a channel"
        )
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ValueError(f"{file.name} is transparent in places, where it has no colour; lay it on a background")
    return image


def _table(name: str, data: bytes) -> np.ndarray:
    import gzip

    text = gzip.decompress(data) if name.endswith(".gz") else data
    try:
        return np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{name} is no table of numbers between commas: {error}") from error
