"""The weights of one kind over all blocks in a basis that they share, and a network that predicts a block's from its
neighbours': LESA, arXiv 2502.13794, section 3; details by the authors' code (yangyifei729/LESA, train_LESA.ipynb).

Shapes: L blocks, O rows (outputs) and I columns (inputs) of a matrix, R rank of the basis; N samples of X numbers each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.expansion.methods.fitting import Fitting

Read = Callable[[int], torch.Tensor]
"""The matrix [O, I] of a block, in fp32."""


@dataclass(frozen=True)
class Basis:
    """W_l = left diag(scales) C_l for every block l, from the SVD [W_1 ... W_L] = U S [V_1 ... V_L].

    As samples of the network C_l is taken by rows or by columns. By rows, as published, it is V_l itself: scales = S, a
    sample is one direction over all inputs, N = R and X = I. By columns, which is ours, C_l = sqrt(LI) V_l, so that
    each coefficient has mean square 1: a sample is one input in all directions, N = I and X = R.

    Attributes:
        left: U, [O, R], orthonormal columns, fp32.
        scales: [R], descending, fp32.
        samples: "rows" or "columns".
    """

    left: torch.Tensor
    scales: torch.Tensor
    samples: str

    def coefficients(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """C of a matrix as samples, [N, X]."""
        coefficients_IR = (matrix_OI.T @ self.left) / self.scales
        return coefficients_IR if self.samples == "columns" else coefficients_IR.T.contiguous()

    def matrix(self, coefficients_NX: torch.Tensor) -> torch.Tensor:
        """The matrix [O, I] of these coefficients."""
        coefficients_RI = coefficients_NX.T if self.samples == "columns" else coefficients_NX
        return (self.left * self.scales) @ coefficients_RI


def find_basis(read: Read, num_blocks: int, samples: str) -> Basis:
    """The basis of all blocks' matrices, with one of them in memory at a time.

    U and S come from the Gram matrix, the sum of W_l W_l^T, in fp64: O x O numbers, however many blocks there are.
    Squaring halves the digits, which leaves those of fp32; directions below them are left out.
    """
    first_OI = read(0).double()
    gram_OO = first_OI @ first_OI.T
    for block in range(1, num_blocks):
        matrix_OI = read(block).double()
        gram_OO.addmm_(matrix_OI, matrix_OI.T)
    squares, left = torch.linalg.eigh(gram_OO)
    kept = squares > squares[-1] * len(squares) * torch.finfo(torch.float64).eps
    squares, left = squares[kept].flip(0), left[:, kept].flip(1)
    divisor = num_blocks * first_OI.shape[1] if samples == "columns" else 1
    return Basis(left.float().contiguous(), (squares / divisor).sqrt().float(), samples)


def project(basis: Basis, read: Read, num_blocks: int, file: Path) -> torch.Tensor:
    """The coefficients of all blocks, [L, N, X] in fp32, in a file that is mapped into memory."""
    first_NX = basis.coefficients(read(0))
    size = num_blocks * first_NX.numel()
    coefficients = torch.from_file(str(file), shared=True, size=size, dtype=torch.float32)
    coefficients_LNX = coefficients.view(num_blocks, *first_NX.shape)
    for block in range(num_blocks):
        coefficients_LNX[block] = basis.coefficients(read(block)) if block else first_NX
    return coefficients_LNX


def fit(coefficients_LNX: torch.Tensor, fitting: Fitting) -> nn.Module:
    """Train a network that maps a sample in the blocks below and above, joined to 2X numbers, to that of the block."""
    num_blocks, num_samples, size = coefficients_LNX.shape
    flat = coefficients_LNX.view(-1, size)
    generator = torch.Generator().manual_seed(fitting.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        network = _network(size, fitting.hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=fitting.lr, fused=True)
    for _ in range(fitting.num_epochs):
        order = torch.randperm((num_blocks - 2) * num_samples, generator=generator) + num_samples
        for own in order.split(fitting.batch_size):
            neighbours = torch.cat([flat[own - num_samples], flat[own + num_samples]], dim=1)
            loss = loss_of(network(neighbours), flat[own], fitting)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def between(network: nn.Module, below_NX: torch.Tensor, above_NX: torch.Tensor) -> torch.Tensor:
    """The coefficients [N, X] that the network predicts between two blocks."""
    return network(torch.cat([below_NX, above_NX], dim=1))


def _network(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size)
    )


def loss_of(predicted_BX: torch.Tensor, own_BX: torch.Tensor, fitting: Fitting) -> torch.Tensor:
    """The loss of a batch of B samples.

    Of rows, as published: (1 - lambda) MSE + lambda (|predicted|_F - |own|_F)^2, with the norms of the whole batch. The
    second term forces the size of what is predicted: at a prediction of 0 it is lambda B X times the MSE.
    Of columns, ours: MSE + lambda mean_b (|predicted_b| - |own_b|)^2, which leaves a small prediction small.
    """
    mse, weight = nn.functional.mse_loss(predicted_BX, own_BX), fitting.norm_weight
    if fitting.samples == "columns":
        return mse + weight * (predicted_BX.norm(dim=1) - own_BX.norm(dim=1)).square().mean()
    return (1 - weight) * mse + weight * (predicted_BX.norm() - own_BX.norm()).square()
