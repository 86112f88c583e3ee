"""Sums over tokens of a function of their logits, without the whole [tokens, vocabulary] matrix in memory.

Shapes: N tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.training.kernels.head import PLAIN, Head

Term = Callable[[slice, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]
"""Of a chunk (which tokens, their logits, which it may overwrite, and whether a gradient is wanted): sum, dlogits."""


@dataclass(frozen=True)
class States:
    """What a model computed for N tokens, and how logits follow from it.

    Attributes:
        hidden: [N, D], the last hidden states; the logits themselves, [N, V], where `weight` is None.
        weight, bias: [V, D] and [V], the last matrix.
        head: what follows its product.
    """

    hidden: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    head: Head = PLAIN

    def at(self, kept_N: torch.Tensor) -> States:
        """Those of some of the tokens."""
        return replace(self, hidden=self.hidden[kept_N])

    def logits(self, part: slice = slice(None)) -> torch.Tensor:
        """Of some tokens, in fp32 or wider, in memory of their own."""
        hidden, wide = self.hidden[part], torch.promote_types(self.hidden.dtype, torch.float32)
        if self.weight is None:
            return hidden.to(wide, copy=True)
        logits = (hidden @ self.weight.to(hidden.dtype).T).to(wide)
        if self.bias is not None:
            logits += self.bias.to(wide)
        return self.head.finish_(logits)


class _Chunked(torch.autograd.Function):
    """Sum of a term over chunks of tokens, whose gradient is formed in the forward pass.

    Forming dlogits at once costs no recomputation and keeps one chunk of logits alive; a frozen head gets no weight
    gradient at all.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND, weight_VD, bias_V, term, chunk, head):
        needs_hidden, needs_weight, needs_bias = (ctx.needs_input_grad[i] for i in range(3))
        wants_grad = needs_hidden or needs_weight
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if needs_bias and bias_V is not None else None
        weight = None if weight_VD is None else weight_VD.to(hidden_ND.dtype)
        states = States(hidden_ND, weight, bias_V, head)
        total = hidden_ND.new_zeros((), dtype=wide)
        for start in range(0, hidden_ND.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = states.logits(part)
            slope = head.slope(logits) if wants_grad else None
            value, dlogits = term(part, logits, wants_grad)
            total += value
            if dlogits is None:
                continue
            if slope is not None:
                dlogits *= slope
            if grad_bias is not None:
                grad_bias += dlogits.sum(0)
            dlogits = dlogits.to(hidden_ND.dtype)
            if grad_hidden is not None:
                if weight is None:
                    grad_hidden[part] = dlogits
                else:
                    torch.mm(dlogits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += dlogits.T @ hidden_ND[part]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = tuple(None if one is None else one.dtype for one in (weight_VD, bias_V))
        return total

    @staticmethod
    def backward(ctx: Any, grad_total):
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_total.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_total).to(ctx.dtypes[0])
        if grad_bias is not None:
            grad_bias = (grad_bias * grad_total).to(ctx.dtypes[1])
        return grad_hidden, grad_weight, grad_bias, None, None, None


def chunked_cross_entropy(states: States, labels_N: torch.Tensor, chunk: int = 512) -> torch.Tensor:
    """Sum over tokens of the cross entropy in nats, in fp32 or wider, for labels without ignored entries."""

    def term(part: slice, logits: torch.Tensor, wants_grad: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = torch.arange(logits.shape[0], device=logits.device)
        normalizer = logits.logsumexp(-1, keepdim=True)
        value = (normalizer.squeeze(-1) - logits[rows, labels_N[part]]).sum()
        if not wants_grad:
            return value, None
        dlogits = logits.sub_(normalizer).exp_()
        dlogits[rows, labels_N[part]] -= 1
        return value, dlogits

    return _summed(states, term, chunk)


def chunked_kl(states: States, base: States, temperature: float, chunk: int = 512) -> torch.Tensor:
    """Sum over tokens of T^2 KL(p of the base || q of the model) in nats, p and q at temperature T, by their logits.

    T^2 keeps the size of the gradient, T (q - p), as T grows (Hinton et al., arXiv 1503.02531, section 2.1). The base
    gets no gradient.
    """

    def term(part: slice, logits: torch.Tensor, wants_grad: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        log_q, log_p = (_log_softmax_(one.div_(temperature)) for one in (logits, base.logits(part)))
        p = log_p.exp()
        value = log_p.sub_(log_q).mul_(p).sum() * temperature**2
        return value, log_q.exp_().sub_(p).mul_(temperature) if wants_grad else None

    return _summed(states, term, chunk)


def _summed(states: States, term: Term, chunk: int) -> torch.Tensor:
    return _Chunked.apply(states.hidden, states.weight, states.bias, term, chunk, states.head)


def _log_softmax_(logits: torch.Tensor) -> torch.Tensor:
    return logits.sub_(logits.logsumexp(-1, keepdim=True))
