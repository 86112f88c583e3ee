"""What models do to the product of their last matrix: logits are divided, multiplied, softly capped, or left alone.

Known without asking which architecture it is: transformers' configs name these numbers alike, and what was read is
tried on a few tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Head:
    """How logits y follow from x, the product of the last matrix: y = cap tanh(x factor / divisor / cap).

    Attributes:
        divisor: as Granite has it.
        factor: as Cohere has it.
        cap: as Gemma 2 has it; None: no cap.
    """

    divisor: float = 1.0
    factor: float = 1.0
    cap: float | None = None

    def finish_(self, x: torch.Tensor) -> torch.Tensor:
        """The logits, in place of what the last matrix gave."""
        if self.divisor != 1.0:
            x /= self.divisor
        if self.factor != 1.0:
            x *= self.factor
        return x if self.cap is None else x.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float | None:
        """dy/dx at these logits y; None where it is 1. A tensor of their size only for a cap."""
        scale = self.factor / self.divisor
        if self.cap is not None:
            return (logits / self.cap).square_().neg_().add_(1.0).mul_(scale)
        return None if scale == 1.0 else scale


PLAIN = Head()


def head_of(causal: Any) -> Head | None:
    """How a model's logits follow from its last hidden state; None if no `Head` gives them bit for bit.

    Tried on the model as it was loaded: all of one dtype, without adapters.
    """
    last, decoder = causal.get_output_embeddings(), decoder_of(causal)
    if not isinstance(last, nn.Linear) or decoder is None:
        return None
    config = causal.config.get_text_config()
    ids = torch.arange(8, device=last.weight.device)[None] % config.vocab_size
    with torch.no_grad():
        logits = causal(input_ids=ids, use_cache=False).logits
        product = last(decoder(input_ids=ids, use_cache=False)[0])
        # A number that a config has and its model does not use is found out here.
        for head in (_configured(config), PLAIN):
            if torch.equal(logits, head.finish_(product.clone())):
                return head
    return None


def decoder_of(causal: Any) -> Any:
    """The part of a model that ends with its last hidden state; None if it cannot be told."""
    decoder = causal.get_decoder()
    # Where transformers does not find it, it gives the model itself.
    return decoder if decoder is not causal else getattr(causal, "model", None)


def _configured(config: Any) -> Head:
    cap = _number(config, "final_logit_softcapping")
    return Head(_number(config, "logits_scaling") or 1.0, _number(config, "logit_scale") or 1.0, cap)


def _number(config: Any, name: str) -> float | None:
    """MPT names its scale by a word, and its model does not use it."""
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and value else None
