"""Images with a question and an answer each, for a model that reads images: tokens and pixels in, a part held out.

A document is BOS (or what else a text without a context follows), the tokens of the image, the question, the answer and
EOS; the answer and EOS are learned. An image is never first: the token before its patches begins as 0, and with nothing
before it its states would be 0 in each block, where a norm multiplies gradients by 1 / sqrt(eps) and all become NaN.

Shapes: N images, C channels, H and W pixels of a side, T tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.clean.split import Split
from pipeline.data.corpus import Workspace, check_sources, finish, read_sources, write_lines
from pipeline.data.packing.examples import lay
from pipeline.data.packing.mixture import PackedStream
from pipeline.data.packing.rows import PADDING_SEGMENT, Span, build_row, chat_spans
from pipeline.data.packing.schedule import check_whole
from pipeline.data.sources.images import ImageSource, Picture
from pipeline.data.tokens.special_tokens import spare_token
from pipeline.data.tokens.store import TokenStore, open_store, write_store
from pipeline.data.tokens.text_encoder import TextEncoder

HELD_OUT = "heldout"


@dataclass(frozen=True)
class HeldOutImages:
    """fraction: of the images of every source, at least one; those of the smallest hashes. Equal images are one."""

    fraction: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise ValueError(f"held_out.fraction={self.fraction} must be more than 0 and at most 0.5")

    def of(self, pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture], int]:
        """Those to train on, those held out, and how many different ones there are.

        Raises:
            ValueError: nothing is left to train on.
        """
        hashes = [hashlib.sha256(f"{self.seed} ".encode() + one.pixels.tobytes()).hexdigest() for one in pictures]
        different = sorted(set(hashes))
        held = set(different[: max(1, round(self.fraction * len(different)))])
        sides: tuple[list[Picture], list[Picture]] = ([], [])
        for one, key in zip(pictures, hashes, strict=True):
            sides[key in held].append(one)
        if not sides[0]:
            raise ValueError(f"{len(pictures)} images, {len(different)} of them different, are too few to hold one out")
        return *sides, len(different)


@dataclass(frozen=True)
class ImageData:
    """Weighted image sources by name, one question about all of them, and how much of each is held out.

    Attributes:
        question: asked about every image.
        num_patches: into which the model that reads them cuts an image.
        image_token: that stands for them in token ids, see `spare_token`; the model's own.
    """

    sources: Mapping[str, ImageSource]
    question: str
    num_patches: int
    image_token: str | None
    held_out: HeldOutImages

    def __post_init__(self) -> None:
        check_sources(self.sources, "refuse")
        if not self.question.strip():
            raise ValueError("data.question is empty; ask something about the images, such as 'Digit:'")
        if self.num_patches < 1:
            raise ValueError(f"data.num_patches={self.num_patches} must be at least 1")

    def prepare(self, tokenizer: Any, place: Workspace) -> dict[str, Any]:
        """Write tokens, targets, pixels and answers of every source's two parts and `sources.json`; return metrics.

        Raises:
            ValueError: a source is empty, has images of several sizes, or cannot be split.
        """
        layout = Layout(
            TextEncoder(tokenizer, place.rows(tokenizer)),
            spare_token(tokenizer, self.image_token),
            self.num_patches,
            self.question,
        )
        done, shapes, answers, num_different, num_equal = {}, set(), set(), 0, 0
        for name, source in self.sources.items():
            place.progress(note=f"reading {name}")
            pictures = list(source.read(place.locate, place.listing))
            train, held, different = self.held_out.of(pictures)
            shapes |= {(one.pixels.shape, one.pixels.dtype.name) for one in pictures}
            answers |= {one.answer for one in pictures}
            num_different, num_equal = num_different + different, num_equal + len(pictures) - different
            counts = {kind: _write(place, kind, part, layout, tokenizer) for kind, part in _named(name, train, held)}
            done[name] = _account(source.weight, *counts.values())
        if len(shapes) > 1:
            raise ValueError(f"images of several forms, {sorted(shapes)}; a model reads one: bring them to one size")
        ((shape, _),) = shapes
        said = {"question": self.question, "num_patches": self.num_patches, "image_token_id": layout.token}
        extra = {**said, "image_shape": list(shape), "answers": sorted(answers)}
        empty = np.zeros(0, dtype=bool)
        split = Split(empty, empty, num_different, num_equal, highest_similarity=0.0, coverage=0.0)
        return finish(place, "image", tokenizer, done, split, extra)


@dataclass(frozen=True)
class Layout:
    """How an image, a question about it and an answer become tokens."""

    encoder: TextEncoder
    token: int
    num_patches: int
    question: str

    @classmethod
    def recorded(cls, manifest: Mapping[str, Any], tokenizer: Any) -> Layout:
        """That of a data artifact."""
        token, patches, question = (manifest[key] for key in ("image_token_id", "num_patches", "question"))
        return cls(TextEncoder(tokenizer, manifest["vocab_size"]), token, patches, question)

    def pair(self, answer: str) -> tuple[list[int], list[int]]:
        """Ids up to the end of the question, and those of the answer."""
        before, after = self.encoder.pair(self.question, f" {answer}")
        question, image = before[len(self.encoder.special.prefix) :], [self.token] * (self.num_patches + 2)
        return [*self.encoder.before_text, *image, *question], after

    def document(self, answer: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a whole document, and which of them are learned."""
        before, after = self.pair(answer)
        learned = [*after, *self.encoder.special.end]
        targets = np.repeat(np.array([0, 1], dtype=np.uint8), [len(before), len(learned)])
        return np.array([*before, *learned]), targets


def _named(name: str, train: list[Picture], held: list[Picture]) -> list[tuple[str, list[Picture]]]:
    return [(name, train), (f"{name}.{HELD_OUT}", held)]


def _write(place: Workspace, name: str, pictures: Sequence[Picture], layout: Layout, tokenizer: Any) -> dict[str, int]:
    documents = (layout.document(one.answer) for one in pictures)
    num_documents, num_tokens = write_store(place.directory, name, documents, place.rows(tokenizer))
    np.save(place.directory / f"{name}.images.npy", np.stack([one.pixels for one in pictures]), allow_pickle=False)
    said = (json.dumps({"id": one.id, "answer": one.answer}, ensure_ascii=False) for one in pictures)
    write_lines(place.directory / f"{name}.jsonl", said)
    size = sum(len(one.answer.encode()) for one in pictures)
    return {"documents": num_documents, "tokens": num_tokens, "bytes": size}


def _account(weight: float, train: Mapping[str, int], held: Mapping[str, int]) -> dict[str, Any]:
    """What `sources.json` says of a source."""
    found = {"weight": weight, **train, "held_out_documents": held["documents"], "held_out_bytes": held["bytes"]}
    return {**found, "rejected": {}, "left_out": {}, "ignored_keys": {}}


def pixels_of(images: np.ndarray) -> np.ndarray:
    """Stored images as a model reads them: float32, of uint8 a 255th."""
    return images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)


def open_images(directory: Path, name: str) -> np.ndarray:
    """Map the stored images of a source, or of its held-out part, into memory: [N, C, H, W]."""
    return np.load(directory / f"{name}.images.npy", mmap_mode="r", allow_pickle=False)


class ImageStream(PackedStream):
    """A `PackedStream` of whole documents with an image each; its rows also have `pixel_values`, float32[N, C, H, W].

    images: of every source, as its documents. token: that stands for images.
    """

    def __init__(
        self, stores: Sequence[TokenStore], images: Sequence[np.ndarray], token: int, *args: Any, **options: Any
    ) -> None:
        super().__init__(stores, *args, **options)
        self._images, self._token = images, token

    def read(self, row: Sequence[Span]) -> dict[str, np.ndarray]:
        """See `PackedStream.read`."""
        return _with_images(super().read(row), row, self._images, self._token)


def open_image_stream(directory: Path, seq_len: int, seed: int, packing: str | None, shares: Any) -> ImageStream:
    """The mixture of all sources of an image data artifact, packed.

    Raises:
        ValueError: rows are to be filled, which would cut images, or have no room for one.
    """
    check_whole(packing)
    manifest = read_sources(directory)
    sources = manifest["sources"]
    weights = {name: source["weight"] for name, source in sources.items()}
    stores, images = (
        [open_store(directory, name) for name in sources],
        [open_images(directory, name) for name in sources],
    )
    if (shortest := min(int(store.lengths.min()) for store in stores)) > seq_len:
        raise ValueError(f"seq_len={seq_len} has room for no image: the shortest document has {shortest} tokens")
    return ImageStream(
        stores, images, manifest["image_token_id"], weights, seq_len, seed, "skip", packing="first_fit", shares=shares
    )


def held_out_rows(directory: Path, seq_len: int, num_tokens: int) -> dict[str, list[dict[str, np.ndarray]]]:
    """Packed rows of the first held-out images, by source: at most `num_tokens` in all, a document at least."""
    manifest = read_sources(directory)
    names, token = list(manifest["sources"]), manifest["image_token_id"]
    return {name: list(_held_out(directory, name, token, seq_len, num_tokens // len(names))) for name in names}


def _held_out(directory: Path, name: str, token: int, seq_len: int, num_tokens: int) -> Iterator[dict[str, np.ndarray]]:
    store = open_store(directory, f"{name}.{HELD_OUT}")
    images = open_images(directory, f"{name}.{HELD_OUT}")
    spans = [Span(0, *map(int, one)) for one in chat_spans(store, seq_len, "skip").table]
    number = max(1, int(np.searchsorted(np.cumsum([span.length for span in spans]), num_tokens, side="right")))
    for row in lay(spans[:number], seq_len):
        yield _with_images(build_row(row, [store], seq_len), row, [images], token)


def _with_images(
    arrays: dict[str, np.ndarray], row: Sequence[Span], images: Sequence[np.ndarray], token: int
) -> dict[str, np.ndarray]:
    """A row with the images of its documents, and with another token than theirs where it is padded."""
    shape = images[0].shape[1:]
    found = [pixels_of(images[span.source][span.document]) for span in row]
    arrays["input_ids"][arrays["segment_ids"] == PADDING_SEGMENT] = int(token == 0)
    return {**arrays, "pixel_values": np.stack(found) if found else np.zeros((0, *shape), dtype=np.float32)}
