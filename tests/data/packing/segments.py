"""What a packed row was made from."""

from __future__ import annotations

import numpy as np


def unpack(row: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The inputs of every segment of a row, in order: what `build_row` was given."""
    segments = row["segment_ids"]
    return [row["input_ids"][segments == segment] for segment in range(int(segments.max(initial=-1)) + 1)]
