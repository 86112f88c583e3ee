"""The start of what SCALE adds to a matrix: its leading part, for `methods.scale`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.expansion.values import generator_of, tensor_of
from pipeline.models.files.tensor_file import Stored


@dataclass(frozen=True)
class Leading:
    """[W21 W22]: U^T W of the leading left singular vectors U of the old weight W, and normal values beside it.

    `shape`: of both together. The sign of a singular vector is that which makes the largest entry of its row positive.
    """

    deviation: float
    seed: int
    shape: tuple[int, int]

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        num_rows, width = self.shape
        _, values_R, right_RI = torch.linalg.svd(tensor_of(inputs[0]).float(), full_matrices=False)
        right_NI = right_RI[:num_rows]
        signs_N1 = right_NI.gather(1, right_NI.abs().argmax(dim=1, keepdim=True)).sign()
        drawn = torch.randn(num_rows, width - right_NI.shape[1], generator=generator_of(name, self.seed))
        yield torch.cat([values_R[:num_rows, None] * signs_N1 * right_NI, self.deviation * drawn], dim=1)
