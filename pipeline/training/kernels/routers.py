"""The routers of a mixture of experts as transformers records them: which there are, their balance, and their load.

Shapes: L routers, X places of a batch in order, B rows, T tokens of a row, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training.kernels.head import decoder_of

_BIASED_CHOICE = "e_score_correction_bias"


@dataclass(frozen=True)
class Routers:
    """What chooses among experts in a model whose decoder gives their logits, one a block that has experts.

    Attributes:
        names: of the modules, from the bottom.
        top_k: experts that a token meets.
    """

    names: tuple[str, ...]
    top_k: int

    def picks(self, logits_XE: torch.Tensor) -> torch.Tensor:
        """1 where a token chooses an expert, else 0; [X, E] in fp32."""
        chosen = logits_XE.detach().topk(self.top_k, dim=-1).indices
        return torch.zeros_like(logits_XE, dtype=torch.float32).scatter_(-1, chosen, 1.0)

    def load(self, logits: Sequence[torch.Tensor], padding_X: torch.Tensor) -> torch.Tensor:
        """How many of the tokens that are no padding chose each expert, [L, E] in fp32."""
        return torch.stack([(self.picks(one) * ~padding_X[:, None]).sum(0) for one in logits])


def routers_of(causal: Any) -> Routers | None:
    """The routers of a causal language model; None where it has none, or where transformers does not tell their logits.

    A router whose choice is corrected by a bias (DeepSeek-V3, GLM-4.5) is kept even by that bias, and left alone.
    """
    decoder = decoder_of(causal)
    recorded = (getattr(decoder, "_can_record_outputs", None) or {}).get("router_logits")
    if recorded is None or isinstance(recorded, list) or getattr(recorded, "target_class", None) is None:
        return None
    layer = f".{recorded.layer_name}." if recorded.layer_name else ""
    found = [
        (name, module)
        for name, module in causal.named_modules()
        if isinstance(module, recorded.target_class) and layer in f".{name}."
    ]
    config = causal.config.get_text_config()
    top_k = getattr(config, "num_experts_per_tok", None)
    biased = any(hasattr(module, _BIASED_CHOICE) for _, module in found)
    if not found or biased or not isinstance(top_k, int) or num_experts_of(config) is None:
        return None
    return Routers(tuple(name for name, _ in found), top_k)


def num_experts_of(config: Any) -> int | None:
    """How many experts a router chooses among, by the names that families have for it; None: there are no experts."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def imbalance(logits_XE: torch.Tensor, padding_BT: torch.Tensor, routers: Routers) -> torch.Tensor:
    """Summed over rows, a row's tokens times E/k sum_i f_i P_i, all over its tokens that are no padding.

    f_i is the share of tokens that choose expert i, P_i the mean of its softmax probability, which alone has a gradient
    (DeepSeekMoE, arXiv 2401.06066, equations 12 to 14): a row of even load has 1, one of a single choice E/k.
    """
    rows, experts = padding_BT.shape[0], logits_XE.shape[-1]
    tokens_BT1 = (~padding_BT)[:, :, None]
    tokens_B1 = tokens_BT1.sum(1)
    probability_BTE = logits_XE.softmax(-1, dtype=torch.promote_types(logits_XE.dtype, torch.float32))
    f_BE, p_BE = (
        (of_XE.view(rows, -1, experts) * tokens_BT1).sum(1) / tokens_B1.clamp(min=1)
        for of_XE in (routers.picks(logits_XE), probability_BTE)
    )
    return (f_BE * p_BE * tokens_B1).sum() * experts / routers.top_k
