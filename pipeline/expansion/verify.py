"""Proof of an expansion: what was written is loaded again by stock transformers and compared with its source."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.models import load


@dataclass(frozen=True)
class Probe:
    """What a model computes on fixed token ids.

    logits_BTV: without a cache. cached_BTV: the same tokens in two steps through the KV cache. generated_BT: greedy.
    """

    logits: torch.Tensor
    cached: torch.Tensor
    generated: torch.Tensor


@dataclass(frozen=True)
class Proof:
    """The outcome of a comparison, in the source's dtype, with no tolerance."""

    logits_equal: bool
    cached_logits_equal: bool
    generation_equal: bool
    max_abs_difference: float
    num_tokens: int
    dtype: str

    @property
    def exact(self) -> bool:
        """All three comparisons are bit for bit."""
        return self.logits_equal and self.cached_logits_equal and self.generation_equal

    def record(self) -> dict[str, Any]:
        """The plain form kept in the manifest."""
        return asdict(self)


def probe(path: Path, num_tokens: int = 48, num_generated: int = 8, seed: int = 0) -> Probe:
    """Run the saved model of `path` in the dtype of its weights on `num_tokens` seeded random token ids."""
    model = load(path)
    for parameter in model.parameters():
        # Mapped files put tensors at any address, and matrix kernels sum in an order that depends on it.
        parameter.data = parameter.data.clone()
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, model.config.vocab_size, (1, num_tokens), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids_BT, use_cache=False).logits
        cut = num_tokens // 2
        first = model(input_ids=ids_BT[:, :cut], use_cache=True)
        second = model(input_ids=ids_BT[:, cut:], past_key_values=first.past_key_values, use_cache=True)
        mask = torch.ones_like(ids_BT[:, :cut])
        generated = model.generate(
            ids_BT[:, :cut], attention_mask=mask, max_new_tokens=num_generated, do_sample=False, pad_token_id=0
        )
    return Probe(logits, torch.cat([first.logits, second.logits], dim=1), generated)


def verify_identity(source: Path, expanded: Path, num_tokens: int = 48) -> Proof:
    """Compare the saved models of two directories bit for bit. One model is in memory at a time.

    The statement of LLaMA Pro's section 3.2, that the expanded model's output equals the source's, as a check.
    """
    before, after = probe(source, num_tokens), probe(expanded, num_tokens)
    return Proof(
        logits_equal=torch.equal(before.logits, after.logits),
        cached_logits_equal=torch.equal(before.cached, after.cached),
        generation_equal=torch.equal(before.generated, after.generated),
        max_abs_difference=(before.logits.float() - after.logits.float()).abs().max().item(),
        num_tokens=num_tokens,
        dtype=str(before.logits.dtype).removeprefix("torch."),
    )
