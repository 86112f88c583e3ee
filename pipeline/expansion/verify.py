"""Proof of an expansion: what was written is loaded again by stock transformers and compared with its source."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.models import load
from pipeline.models.finite import first_not_finite, is_broken

_CACHES = ("past_key_values", "cache_params")  # by transformers' names, in its outputs and arguments alike


@dataclass(frozen=True)
class Probe:
    """What a model computes on fixed token ids.

    logits_BTV: without a cache. cached_BTV: the same tokens in two steps through the cache, or None for a model that
    gives none. generated_BT: greedy. dtype: that of the weights. not_finite: the first part of the model whose output
    has NaN or infinity, where the logits have.
    """

    logits: torch.Tensor
    cached: torch.Tensor | None
    generated: torch.Tensor
    dtype: str
    not_finite: str | None


@dataclass(frozen=True)
class Proof:
    """The outcome of a comparison, in the source's dtype, with no tolerance.

    `cached_logits_equal` is None where the architecture has no cache that a later call takes up: nothing was compared.
    `note` says why it was made in float32 instead, where one of the models overflows in its own dtype. An expanded
    model that overflows where its source does not is not exact.
    """

    logits_equal: bool
    cached_logits_equal: bool | None
    generation_equal: bool
    max_abs_difference: float
    num_tokens: int
    dtype: str
    note: str | None = None
    overflows_alone: bool = False

    @property
    def exact(self) -> bool:
        """All comparisons that were possible are bit for bit."""
        equal = self.logits_equal and self.cached_logits_equal is not False and self.generation_equal
        return equal and not self.overflows_alone

    def record(self) -> dict[str, Any]:
        """The plain form kept in the manifest."""
        return asdict(self)


def probe(
    path: Path, num_tokens: int = 48, num_generated: int = 8, seed: int = 0, dtype: torch.dtype | str = "auto"
) -> Probe:
    """Run the saved model of `path` on `num_tokens` seeded random token ids, by default in the dtype of its weights."""
    model = load(path, dtype=dtype)
    for parameter in model.parameters():
        # Mapped files put tensors at any address, and matrix kernels sum in an order that depends on it.
        parameter.data = parameter.data.clone()
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, model.config.get_text_config().vocab_size, (1, num_tokens), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids_BT, use_cache=False).logits
        cut = num_tokens // 2
        cached = _in_two_steps(model, ids_BT, cut)
        mask = torch.ones_like(ids_BT[:, :cut])
        generated = model.generate(ids_BT[:, :cut], attention_mask=mask, max_new_tokens=num_generated, pad_token_id=0)
    not_finite = first_not_finite(model, ids_BT) if is_broken(logits) else None
    return Probe(logits, cached, generated, str(model.dtype).removeprefix("torch."), not_finite)


def _in_two_steps(model: Any, ids_BT: torch.Tensor, cut: int) -> torch.Tensor | None:
    """Logits of the first `cut` tokens and of the others after them, by whichever cache the model gives; None: none."""
    first = model(input_ids=ids_BT[:, :cut], use_cache=True)
    name = next((name for name in _CACHES if getattr(first, name, None) is not None), None)
    if name is None:
        return None
    # A state of fixed size (Mamba) goes on a token at a time; a cache of keys takes all the others at once.
    steps = ids_BT[:, cut:].split(1 if name == "cache_params" else ids_BT.shape[1] - cut, dim=1)
    cache, parts = getattr(first, name), [first.logits]
    for step_BT in steps:
        output = model(input_ids=step_BT, use_cache=True, **{name: cache})
        cache = getattr(output, name)
        parts.append(output.logits)
    return torch.cat(parts, dim=1)


def _equal(before: torch.Tensor | None, after: torch.Tensor | None) -> bool | None:
    if before is None or after is None:
        return None if before is after else False
    return torch.equal(before, after)


def verify_identity(source: Path, expanded: Path, num_tokens: int = 48, in_fp32: bool = False) -> Proof:
    """Compare the saved models of two directories bit for bit. One model is in memory at a time.

    The statement of LLaMA Pro's section 3.2, that the expanded model's output equals the source's, as a check. A source
    that overflows in its dtype is compared in float32: NaN equals nothing. `in_fp32`: so is every source, for a method
    that keeps the function up to rounding.

    Raises:
        ValueError: one of them computes NaN or infinity even in float32.
    """
    if in_fp32:
        return _proof(_in_fp32(source, num_tokens), _in_fp32(expanded, num_tokens), num_tokens)
    before = probe(source, num_tokens)
    after = None if before.not_finite else probe(expanded, num_tokens)
    note, alone = None, after is not None and after.not_finite is not None
    if after is None or alone:
        note = _overflow(before) if after is None else _overflow(after, "expanded model")
        before, after = (_in_fp32(path, num_tokens) for path in (source, expanded))
        warnings.warn(note, stacklevel=2)
    if before.cached is None and after.cached is None:
        warnings.warn(f"the model in {source} gives no cache that is known here; compared without one", stacklevel=2)
    return _proof(before, after, num_tokens, note, alone)


def rounding_of(source: Path, num_tokens: int = 48) -> float:
    """How far the logits that a saved model computes in float32 are from those in float64, at most.

    Nothing that computes the same in another order can be told from it more closely.
    """
    wide, narrow = (probe(source, num_tokens, dtype=dtype).logits.double() for dtype in (torch.float64, torch.float32))
    return (wide - narrow).abs().max().item()


def _proof(before: Probe, after: Probe, num_tokens: int, note: str | None = None, alone: bool = False) -> Proof:
    return Proof(
        logits_equal=torch.equal(before.logits, after.logits),
        cached_logits_equal=_equal(before.cached, after.cached),
        generation_equal=torch.equal(before.generated, after.generated),
        max_abs_difference=_difference(before.logits, after.logits),
        num_tokens=num_tokens,
        dtype=before.dtype,
        note=note,
        overflows_alone=alone,
    )


def _overflow(found: Probe, which: str = "source") -> str:
    return f"compared in float32 because the {which} overflows in {found.dtype} (first in {found.not_finite})"


def _in_fp32(path: Path, num_tokens: int) -> Probe:
    found = probe(path, num_tokens, dtype=torch.float32)
    if found.not_finite:
        raise ValueError(
            f"the model in {path} computes NaN or infinity even in float32: the first output that is not finite is "
            f"that of {found.not_finite}; its weights are broken, so take another checkpoint"
        )
    return found


def _difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """The largest; tokens that both models mask with the same infinity do not differ."""
    apart = (before.float() - after.float()).abs()
    return apart.masked_fill(before == after, 0.0).max().item()
