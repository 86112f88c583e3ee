"""pass@k from samples: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, (1)."""

from __future__ import annotations

import math


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased estimate 1 - C(n-c, k) / C(n, k): the chance that k of the n samples hold a correct one.

    As a product, whose factors are all between 0 and 1: the binomials themselves leave the range of a float. Taken with
    k = 1 it is c / n.

    Raises:
        ValueError: unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples. With fewer samples than k the
            estimate would be biased.
    """
    n, c = num_samples, num_correct
    if not 0 <= c <= n:
        raise ValueError(f"num_correct={c} must be between 0 and num_samples={n}")
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and the {n} samples of a problem; draw more samples or lower k")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))
