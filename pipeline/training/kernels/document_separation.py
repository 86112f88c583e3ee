"""Documents of a packed row that must not see each other, also in architectures that know nothing of packing.

Most architectures take positions that restart as the bounds of documents. Others would mix what stands in one row: a
state that runs on (Mamba), positions of their own making (BLOOM, OPT). For these a row is taken apart: one
document a row, padded on the right, where a causal model does not look.

Shapes: B rows, T tokens of a row, N documents, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pipeline.training.kernels.head import decoder_of

IGNORED = -100
SHORTEST = 0.75
"""Of the longest document of a group, that the shortest may have: a third more tokens than documents have, at most."""


def mixes_documents(causal: Any) -> bool:
    """Whether a document of a packed row sees the one before it, tried on a model as it was loaded.

    Tried with two documents of four tokens, by the gradient of the second's states with respect to what the first's
    tokens are embedded as: what is masked has a weight of 0, and its gradient is 0 to the bit, in any precision and for
    any weights. How far the states move would not tell: other tokens may move them by little, rounding may move more.
    """
    decoder = decoder_of(causal) or causal
    ids = torch.arange(1, 9, device=causal.device)[None] % causal.config.get_text_config().vocab_size
    positions = torch.arange(4, device=ids.device).repeat(2)[None]
    embedded: list[torch.Tensor] = []

    def watch(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = causal.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            states = decoder(input_ids=ids, position_ids=positions, use_cache=False)[0][0, 4:].float()
            # Weights of their own: the sum of normalized states is the same for any tokens.
            weights = torch.linspace(-1, 1, states.numel(), device=ids.device).sin().view_as(states)
            (gradient,) = torch.autograd.grad((states * weights).sum(), embedded[:1])
    except TypeError:  # it takes no positions
        return True
    finally:
        hook.remove()
    return bool(gradient[0, :4].any())


def documents_apart(
    input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The documents of packed rows [B, T], one a row: input_ids and labels [N, L], in groups of about one length.

    Documents without a label are left out, padding among them: they bear on no loss. One of them stands for all if
    there is no other, so that a model that is replicated over processes computes on each of them.
    """
    ids_X, labels_X = input_ids.reshape(-1), labels.reshape(-1)
    is_start_BT = (position_ids == 0).cpu().numpy()
    is_start_BT[:, 0] = True
    starts = np.flatnonzero(is_start_BT.reshape(-1))
    spans = np.stack([starts, np.append(starts[1:], ids_X.shape[0])], 1)
    learned_X = np.append(0, np.cumsum((labels_X != IGNORED).cpu().numpy()))
    learns = learned_X[spans[:, 1]] > learned_X[spans[:, 0]]
    spans = spans[learns] if learns.any() else spans[:1]
    for group in _groups(spans):
        length = int((group[:, 1] - group[:, 0]).max())
        shape = (len(group), length)
        part_ids, part_labels = ids_X.new_zeros(shape), labels_X.new_full(shape, IGNORED)
        for row, (start, stop) in enumerate(group.tolist()):
            part_ids[row, : stop - start] = ids_X[start:stop]
            part_labels[row, : stop - start] = labels_X[start:stop]
        yield part_ids, part_labels


def _groups(spans: np.ndarray) -> Iterator[np.ndarray]:
    """Spans of about one length, the longest first."""
    lengths = spans[:, 1] - spans[:, 0]
    left = spans[np.argsort(-lengths, kind="stable")]
    while len(left):
        longest = left[0, 1] - left[0, 0]
        number = int((left[:, 1] - left[:, 0] >= SHORTEST * longest).sum())
        yield left[:number]
        left = left[number:]
