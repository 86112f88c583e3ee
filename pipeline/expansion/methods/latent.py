"""The weights of one kind over all blocks in a basis that they share, and a network that predicts a block's from its
neighbours': LESA, arXiv 2502.13794.

Shapes: L blocks, O rows (outputs) and I columns (inputs) of a matrix, R rank of the basis, N columns of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

Read = Callable[[int], torch.Tensor]
"""The matrix [O, I] of a block, in fp32."""


@dataclass(frozen=True)
class Basis:
    """W_l = left diag(scales) C_l for every block l.

    From the SVD of the matrices side by side, [W_1 ... W_L] = U S [V_1 ... V_L], with C = sqrt(LI) V and
    scales = S / sqrt(LI): each of the R coefficients then has mean square 1 over all columns, a size
    that a network with usual first weights learns at once.

    Attributes:
        left: [O, R], orthonormal columns, fp32.
        scales: [R], descending, fp32.
    """

    left: torch.Tensor
    scales: torch.Tensor

    def coefficients(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        """C of a matrix, transposed: [I, R]."""
        return (matrix_OI.T @ self.left) / self.scales

    def matrix(self, coefficients_IR: torch.Tensor) -> torch.Tensor:
        """The matrix [O, I] of these coefficients."""
        return (self.left * self.scales) @ coefficients_IR.T


def find_basis(read: Read, num_blocks: int) -> Basis:
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
    return Basis(left.float().contiguous(), (squares / (num_blocks * first_OI.shape[1])).sqrt().float())


def project(basis: Basis, read: Read, num_blocks: int, file: Path) -> torch.Tensor:
    """The coefficients of all blocks, [L, I, R] in fp32, in a file that is mapped into memory."""
    first_IR = basis.coefficients(read(0))
    size = num_blocks * first_IR.numel()
    coefficients = torch.from_file(str(file), shared=True, size=size, dtype=torch.float32)
    coefficients_LIR = coefficients.view(num_blocks, *first_IR.shape)
    for block in range(num_blocks):
        coefficients_LIR[block] = basis.coefficients(read(block)) if block else first_IR
    return coefficients_LIR


@dataclass(frozen=True)
class Fitting:
    """How the network is trained.

    Attributes:
        hidden: width of its two hidden layers.
        num_epochs: passes over all columns of all blocks that have two neighbours.
        batch_size: columns.
        lr: of AdamW.
        norm_weight: lambda, the weight of the squared difference of norms beside the mean squared error.
        seed: of its first weights and of the order of columns.
    """

    hidden: int = 256
    num_epochs: int = 5
    batch_size: int = 64
    lr: float = 1e-3
    norm_weight: float = 5e-5
    seed: int = 0


def fit(coefficients_LIR: torch.Tensor, fitting: Fitting) -> nn.Module:
    """Train a network that maps a column's coefficients in the blocks below and above, [N, 2R], to its own, [N, R]."""
    num_blocks, num_columns, rank = coefficients_LIR.shape
    flat = coefficients_LIR.view(-1, rank)
    generator = torch.Generator().manual_seed(fitting.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        network = _network(rank, fitting.hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=fitting.lr, fused=True)
    for _ in range(fitting.num_epochs):
        order = torch.randperm((num_blocks - 2) * num_columns, generator=generator) + num_columns
        for own in order.split(fitting.batch_size):
            neighbours = torch.cat([flat[own - num_columns], flat[own + num_columns]], dim=1)
            loss = _loss(network(neighbours), flat[own], fitting.norm_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def between(network: nn.Module, below_IR: torch.Tensor, above_IR: torch.Tensor) -> torch.Tensor:
    """The coefficients [I, R] that the network predicts between two blocks."""
    return network(torch.cat([below_IR, above_IR], dim=1))


def _network(rank: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * rank, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, rank)
    )


def _loss(predicted_NR: torch.Tensor, own_NR: torch.Tensor, norm_weight: float) -> torch.Tensor:
    """Both terms grow with the square of the coefficients' scale, so that lambda means the same at any."""
    norms = predicted_NR.norm(dim=1) - own_NR.norm(dim=1)
    return nn.functional.mse_loss(predicted_NR, own_NR) + norm_weight * norms.square().mean()
