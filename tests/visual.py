"""Models with visual experts for tests: made from a saved text model, and images for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.images import ImageStream
from pipeline.data.sources.images import Picture
from pipeline.data.tokens.store import TokenStore
from pipeline.expansion.methods.visual_experts import VisualExperts
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion

SETTINGS = {
    "expert_every": 2, "num_channels": 1, "image_size": 4, "patch_size": 2, "image_token": None, "seed": 0,
}  # fmt: skip
NUM_TOKENS = 6  # of an image: 2 x 2 patches, boi and eoi


def give_sight(source, target, **changes):
    found = read_source(source)
    write_expansion(VisualExperts(**{**SETTINGS, **changes}).plan(found), found, target)
    return target


def image_stream(number, token, seq_len=64, seed=0):
    """Images of two kinds, of which a token behind them tells, in rows."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, number)
    images = rng.random((number, 1, 4, 4), dtype=np.float32) * 0.2
    images[kinds == 1, :, :2] += 0.8
    lengths = rng.integers(1, 5, number)
    documents = [
        [61] + [token] * NUM_TOKENS + [40] * n + [50 + kind, 60] for n, kind in zip(lengths, kinds, strict=True)
    ]
    targets = [[0] * (1 + NUM_TOKENS + n) + [1, 1] for n in lengths]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in documents])])
    tokens, marks = (np.concatenate(one) for one in (documents, targets))
    store = TokenStore("a", tokens.astype(np.uint16), offsets, marks.astype(np.uint8))
    return ImageStream([store], [images], token, {"a": 1.0}, seq_len, seed, "skip")


@dataclass(frozen=True)
class TwoKinds:
    """A source: images of 4 x 4 pixels, bright above or below; `count` of them, of which two are equal."""

    count: int
    weight: float

    def read(self, locate, listing):
        rng = np.random.default_rng(0)
        for number in range(self.count):
            pixels = rng.integers(0, 50, (1, 4, 4), dtype=np.uint8)
            kind = int(rng.integers(0, 2))
            pixels[:, 2 * kind : 2 * kind + 2] += 200
            found = Picture(str(number), pixels, ("above", "below")[kind])
            if number == 0:
                first = found
            yield first._replace(id="1") if number == 1 else found
