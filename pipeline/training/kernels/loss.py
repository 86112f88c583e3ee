"""The language-model loss over packed rows, without the whole [tokens, vocabulary] matrix in memory.

Shapes: B rows, T tokens of a row, N labelled tokens of a batch, D model, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.training.kernels.document_separation import IGNORED, documents_apart
from pipeline.training.kernels.head import PLAIN, Head, decoder_of


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of what a head makes of `hidden_ND`, in chunks whose gradient is formed in the forward pass.

    Forming dlogits at once (p - onehot) costs no recomputation and keeps one chunk of logits alive; a frozen head gets
    no weight gradient at all.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND, weight_VD, bias_V, labels_N, chunk, head):
        needs_hidden, needs_weight, needs_bias = (ctx.needs_input_grad[i] for i in range(3))
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if needs_bias and bias_V is not None else None
        weight = weight_VD.to(hidden_ND.dtype)
        total = hidden_ND.new_zeros((), dtype=wide)
        for start in range(0, hidden_ND.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = (hidden_ND[part] @ weight.T).to(wide)
            if bias_V is not None:
                logits += bias_V.to(wide)
            logits = head.finish_(logits)
            rows = torch.arange(logits.shape[0], device=logits.device)
            normalizer = logits.logsumexp(-1, keepdim=True)
            total += (normalizer.squeeze(-1) - logits[rows, labels_N[part]]).sum()
            if not (needs_hidden or needs_weight):
                continue
            slope = head.slope(logits)
            dlogits = logits.sub_(normalizer).exp_()
            dlogits[rows, labels_N[part]] -= 1
            if slope is not None:
                dlogits *= slope
            if grad_bias is not None:
                grad_bias += dlogits.sum(0)
            dlogits = dlogits.to(hidden_ND.dtype)
            if grad_hidden is not None:
                torch.mm(dlogits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += dlogits.T @ hidden_ND[part]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight_VD.dtype, bias_V.dtype if bias_V is not None else None)
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


def chunked_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    chunk: int = 512,
    head: Head = PLAIN,
) -> torch.Tensor:
    """Sum over tokens of the cross entropy in nats, in fp32 or wider, for labels without ignored entries."""
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N, chunk, head)


class PackedLoss(nn.Module):
    """A causal language model and its summed loss over packed rows, as one module (what DDP and FSDP wrap).

    Isolation of documents rests on `position_ids` that restart at 0: transformers' mask builder turns a restart into
    what the attention kernel takes (see `attention` beside this file), and rotary positions restart with it. No
    attention mask and no cache may be passed, or it would not.

    Args:
        model: a transformers causal language model, adapters included.
        head: `head_of` it; for None its own forward makes the logits, all at once.
        chunk: labelled tokens whose logits are in memory at once.
        one_row: give the model all rows as one: transformers' flash attention sees restarts in a batch of one row only,
            and in a larger one lets every document see those before it.
        apart: give the model one document a row, for one that mixes those of a row (`mixes_documents`).
    """

    def __init__(
        self, model: Any, head: Head | None, chunk: int = 512, one_row: bool = False, apart: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk
        self.one_row = one_row
        self.apart = apart
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._causal = [causal]  # in a list: a second registration would double the parameters' names
        self._head = head

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Summed loss in nats over the labelled tokens.

        Args:
            input_ids: [B, T].
            labels: [B, T], already shifted: the token to be predicted at each place, or -100.
            position_ids: [B, T], restarting at 0 at every document.
        """
        if self.apart:
            parts = documents_apart(input_ids, labels, position_ids)
            # Positions from 0 up in every row are what a model takes if it is given none.
            return torch.stack([self._summed(part_labels, input_ids=ids) for ids, part_labels in parts]).sum()
        if self.one_row:
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        return self._summed(labels, input_ids=input_ids, position_ids=position_ids)

    def _summed(self, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        causal, inputs = self._causal[0], {**inputs, "use_cache": False}
        kept = labels.reshape(-1) != IGNORED
        labels_N = labels.reshape(-1)[kept]
        if self._head is None:
            logits = causal(**inputs).logits
            return nn.functional.cross_entropy(logits.flatten(0, 1)[kept].float(), labels_N, reduction="sum")
        hidden = decoder_of(causal)(**inputs)[0]
        last = causal.get_output_embeddings()
        # Positions without a label never reach the vocabulary: most of a chat's tokens.
        return chunked_cross_entropy(
            hidden.flatten(0, 1)[kept], last.weight, last.bias, labels_N, self.chunk, self._head
        )
