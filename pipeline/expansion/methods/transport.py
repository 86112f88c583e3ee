"""Tensors of two blocks aligned by optimal transport: the operations of `methods.opt_deus`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.expansion.values import pieces_together, tensor_of
from pipeline.models.files.tensor_file import Stored

STOP_AT = 1e-9
"""The norm of what is missing from the marginals at which Sinkhorn's iterations end: POT's."""


@dataclass(frozen=True)
class Weighted:
    """The sum of stored tensors of one shape, each times its weight, in fp32."""

    weights: tuple[float, ...]

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        for pieces in pieces_together(inputs):
            yield sum((w * piece for w, piece in zip(self.weights, pieces, strict=True)), torch.zeros_like(pieces[0]))


@dataclass(frozen=True)
class Transport:
    """T(A, B), [N, N]: how the rows of A are moved onto those of B.

    Sinkhorn's algorithm in fp64. `rescaled`: N T. See `OptDeus` for the rest.
    """

    regularisation: float
    num_iterations: int
    rescaled: bool = False

    def __call__(self, rows_ND: torch.Tensor, others_ND: torch.Tensor) -> torch.Tensor:
        """The plan.

        Warns if it is not found in as many iterations.

        Raises:
            ValueError: it is not finite.
        """
        kernel_NN = torch.cdist(rows_ND, others_ND)
        # Rows and columns times constants have the same plan; with a 1 in each none is rounded to nothing.
        kernel_NN -= kernel_NN.amin(dim=1, keepdim=True)
        kernel_NN -= kernel_NN.amin(dim=0)
        kernel_NN.div_(-self.regularisation).exp_()
        num_rows = len(kernel_NN)
        share = 1 / num_rows
        left_N = torch.full((num_rows,), share, dtype=kernel_NN.dtype)
        for step in range(self.num_iterations):
            right_N = share / (kernel_NN.T @ left_N)
            left_N = share / (kernel_NN @ right_N)
            if step % 10 == 0 and (missing := self._missing(kernel_NN, left_N, right_N)) <= STOP_AT:
                break
        else:
            if (missing := self._missing(kernel_NN, left_N, right_N)) > STOP_AT:
                warnings.warn(
                    f"the transport plan of {num_rows} rows still misses its marginals by {missing:.2g} after "
                    f"num_iterations={self.num_iterations}; raise it or expand.regularisation",
                    stacklevel=2,
                )
        kernel_NN *= left_N[:, None] * (num_rows if self.rescaled else 1)
        kernel_NN *= right_N
        if not kernel_NN.isfinite().all():
            raise ValueError(
                f"there is no finite transport plan of {num_rows} rows at regularisation={self.regularisation}; use a "
                "larger expand.regularisation, or expand.alignment=neighbour_mean"
            )
        return kernel_NN

    @staticmethod
    def _missing(kernel_NN: torch.Tensor, left_N: torch.Tensor, right_N: torch.Tensor) -> float:
        """Of the columns' marginals; those of the rows are met after each iteration."""
        return (right_N * (kernel_NN.T @ left_N) - 1 / len(left_N)).norm().item()


@dataclass(frozen=True)
class Aligned:
    """A tensor of the lower block aligned to the upper block's, and the mean of the two; equations: `OptDeus`.

    Its inputs, of the lower and the upper block in turn: the tensor; for a bias its matrix; for what reads the
    attention's output the output matrix. `kind`: "weight", "bias" or "norm".
    """

    transport: Transport
    kind: str

    def __call__(self, name: str, inputs: Sequence[Stored]) -> Iterator[torch.Tensor]:
        """See `Operation`."""
        lower, upper, *others = (tensor_of(one).double() for one in inputs)
        if self.kind == "norm":
            yield ((lower @ self.transport(*others) + lower) / 2 + upper) / 2
            return
        matrix, target, *outputs = others if self.kind == "bias" else (lower, upper, *others)
        if outputs:
            matrix = matrix @ self.transport(*outputs)
        moved = lower if self.kind == "bias" else matrix
        yield (self.transport(matrix, target).T @ moved + upper) / 2
