"""A linear probe: softmax regression on the features of a frozen encoder, the baseline of what reads the same.

Shapes: N images, I features, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the weights, tried on a fifth of the images that the probe is trained on."""


def probe_answers(train_NI: np.ndarray, answers: Sequence[int], asked_NI: np.ndarray, num_answers: int) -> list[int]:
    """What a probe trained on images and their answers says of others.

    Features are brought to mean 0 and deviation 1 over the training images; weights are fitted by L-BFGS in fp64, with
    the decay that is right most often on every fifth training image, the smaller of equals.
    """
    train, asked = (torch.from_numpy(one).double() for one in (train_NI, asked_NI))
    mean, deviation = train.mean(0), train.std(0, correction=0)
    train, asked = ((one - mean) / deviation.clamp(min=1e-6) for one in (train, asked))
    answers_N = torch.tensor(answers)
    kept = torch.arange(len(train)) % 5 > 0
    decay = DECAYS[0]
    if 0 < kept.sum() < len(train):
        fitted = [_fit(train[kept], answers_N[kept], num_answers, one) for one in DECAYS]
        right = [int((_scores(train[~kept], one).argmax(1) == answers_N[~kept]).sum()) for one in fitted]
        decay = DECAYS[right.index(max(right))]
    return _scores(asked, _fit(train, answers_N, num_answers, decay)).argmax(1).tolist()


def _scores(x_NI: torch.Tensor, weights_XA: torch.Tensor) -> torch.Tensor:
    return x_NI @ weights_XA[:-1] + weights_XA[-1]


def _fit(x_NI: torch.Tensor, answers_N: torch.Tensor, num_answers: int, decay: float) -> torch.Tensor:
    """Weights, and a last row of biases: the minimum of the mean loss and decay / 2 times the squared weights."""
    weights_XA = torch.zeros(x_NI.shape[1] + 1, num_answers, dtype=x_NI.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_XA], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(_scores(x_NI, weights_XA), answers_N)
        value = value + decay / 2 * weights_XA[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights_XA.detach()
