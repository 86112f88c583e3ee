"""Continuing token sequences in batches, with a KV cache.

What a row becomes does not depend on the rows beside it, as far as the order of float sums allows: every row has its
own random numbers, rows that are done leave the batch, and padding is masked. What the prompts of a call have in common
(few-shot examples) is run once, and so is a prompt that is sampled several times.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.evaluation.model.scoring import TokenScorer

MIN_STEM = 16  # a common beginning shorter than this is not worth a pass of its own
_PROBE = 7

Ends = Callable[[Sequence[int]], bool]
"""Whether the tokens written so far are an answer that is complete."""


@dataclass(frozen=True)
class Request:
    """One sequence to continue.

    Attributes:
        prompt: its tokens, at least one.
        draws: uniform numbers in [0, 1), one for each token that may be written; None decodes greedily.
        limit: tokens of its own that may be written at most, where it has less room than the others.
    """

    prompt: tuple[int, ...]
    draws: torch.Tensor | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen when a request has draws: softmax(logits / temperature), cut to the smallest set of tokens
    that holds `top_p` of the probability (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751)."""

    temperature: float
    top_p: float

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature} must be positive to sample and top_p={self.top_p} in (0, 1]; greedy "
                "decoding has no draws"
            )

    def choose(self, logits_BV: torch.Tensor, draws_B: torch.Tensor) -> torch.Tensor:
        """The token of each row at which the cumulated probability exceeds its draw, [B]."""
        probs_BV = (logits_BV / self.temperature).softmax(-1).double()
        order_BV = None
        if self.top_p < 1:
            probs_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
            before_BV = probs_BV.cumsum(-1) - probs_BV
            probs_BV = probs_BV.masked_fill(before_BV >= self.top_p, 0.0)
        total_BV = probs_BV.cumsum(-1)
        aims_B1 = draws_B.to(total_BV)[:, None] * total_BV[:, -1:]
        picked_B1 = torch.searchsorted(total_BV, aims_B1, right=True).clamp(max=probs_BV.shape[-1] - 1)
        return (picked_B1 if order_BV is None else order_BV.gather(-1, picked_B1))[:, 0]


class Decoder:
    """Continues token sequences with an fp32 causal language model.

    A model whose cache cannot be split (see TokenScorer) is run whole for every token: slower, the same tokens. One
    whose logits a masked padding changes is given prompts of one length at a time.
    """

    def __init__(self, scorer: TokenScorer) -> None:
        self._scorer = scorer
        self._can_pad = scorer.can_share and self._padding_agrees()
        # Padding between a common beginning and the rest would count against a sliding window.
        self._can_stem = self._can_pad and not _slides(scorer.model)
        self.tokens_run = 0
        """Prompt tokens the model has run over, padding included."""

    def decode(
        self,
        requests: Sequence[Request],
        max_new_tokens: int,
        stops: frozenset[int],
        ends: Ends,
        sampling: Sampling | None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[int]]:
        """What follows each prompt: at most `max_new_tokens`, up to a token of `stops` (left out) or the one at which
        `ends` holds (kept). `progress` is told how many requests are done."""
        places = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt), requests[i].prompt))
        stem, cache = self._stem([requests[i].prompt for i in places])
        found: dict[int, list[int]] = {}
        for batch in self._batches(places, requests, max_new_tokens):
            rows = _Rows([requests[i] for i in batch], max_new_tokens, stops, ends, sampling)
            self._run(rows, stem, cache)
            found.update(zip(batch, rows.written, strict=True))
            progress(len(found))
        return [found[i] for i in range(len(requests))]

    def _stem(self, prompts: Sequence[tuple[int, ...]]) -> tuple[int, Any]:
        """(length, cache) of what all prompts begin with; at least one token of each prompt is left out of it."""
        distinct = sorted(set(prompts))
        if not self._can_stem or len(distinct) < 2:
            return 0, None
        first, last = distinct[0], distinct[-1]  # of sorted sequences the outermost have the least in common
        common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        common = min(common, min(map(len, distinct)) - 1)
        if common < MIN_STEM:
            return 0, None
        self.tokens_run += common
        ids = torch.tensor([first[:common]], device=self._scorer.device)
        return common, self._scorer.advance(ids, None)[1]

    def _batches(self, places: Sequence[int], requests: Sequence[Request], new: int) -> Iterator[list[int]]:
        limit = 16 if self._scorer.device.type == "cpu" else 128
        tokens = self._scorer.cached_tokens()
        batch: list[int] = []
        for place in places:
            widest = len(requests[batch[0]].prompt) if batch else 0
            same = not batch or len(requests[place].prompt) == widest
            full = len(batch) >= limit or (len(batch) + 1) * (widest + new) > tokens
            if batch and (full or not self._scorer.can_share or not (same or self._can_pad)):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _run(self, rows: _Rows, stem: int, stem_cache: Any) -> None:
        if not self._scorer.can_share:
            self._run_whole(rows)
            return
        prompts = list(dict.fromkeys(request.prompt for request in rows.requests))
        logits, cache, mask = self._prefill(prompts, stem, stem_cache)
        index = torch.tensor([prompts.index(request.prompt) for request in rows.requests], device=self._scorer.device)
        if len(prompts) < len(index):
            logits, mask = logits[index], None if mask is None else mask[index]
            cache.reorder_cache(index)
        while (tokens_B := rows.take(logits)) is not None:
            kept = torch.tensor(rows.kept, device=self._scorer.device)
            if rows.dropped:
                cache.reorder_cache(kept)
                mask = None if mask is None else mask[kept]
            placement: dict[str, Any] = {}
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                placement = {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
            logits, cache = self._scorer.advance(tokens_B[:, None], cache, **placement)

    def _prefill(
        self, prompts: Sequence[tuple[int, ...]], stem: int, stem_cache: Any
    ) -> tuple[torch.Tensor, Any, torch.Tensor | None]:
        """(logits after each prompt, cache, mask of the cached positions or None where nothing is padded)."""
        rests = [prompt[stem:] for prompt in prompts]
        width = max(map(len, rests))
        self.tokens_run += width * len(rests)
        ids = torch.tensor([[0] * (width - len(rest)) + list(rest) for rest in rests], device=self._scorer.device)
        cache = None
        if stem:
            cache = self._scorer.spread(stem_cache, len(rests))
        if all(len(rest) == width for rest in rests):
            return *self._scorer.advance(ids, cache), None
        real = [[1] * stem + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        mask = torch.tensor(real, device=self._scorer.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, stem:]
        return *self._scorer.advance(ids, cache, attention_mask=mask, position_ids=positions), mask

    def _run_whole(self, rows: _Rows) -> None:
        prompt = list(rows.requests[0].prompt)
        logits, _ = self._scorer.advance(torch.tensor([prompt], device=self._scorer.device), None)
        while rows.take(logits) is not None:
            ids = torch.tensor([prompt + rows.written[0]], device=self._scorer.device)
            logits, _ = self._scorer.advance(ids, None)

    def _padding_agrees(self) -> bool:
        """Whether masked padding on the left leaves the logits as they are, tried on a few tokens."""
        size = self._scorer.model.config.get_text_config().vocab_size
        ids = torch.arange(1, _PROBE + 1, device=self._scorer.device)[None] % size
        mask = torch.ones(1, _PROBE + 3, dtype=torch.long, device=self._scorer.device)
        mask[:, :3] = 0
        padded = torch.cat([torch.zeros_like(ids[:, :3]), ids], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        plain, _ = self._scorer.advance(ids, None)
        try:
            found, _ = self._scorer.advance(padded, None, attention_mask=mask, position_ids=positions)
        except TypeError:  # the model takes no positions
            return False
        return bool((found - plain).abs().max() <= 1e-3 * plain.abs().max())


class _Rows:
    """The rows of one batch while they grow. `kept` and `dropped` tell which rows the last `take` left in."""

    def __init__(
        self, requests: Sequence[Request], limit: int, stops: frozenset[int], ends: Ends, sampling: Sampling | None
    ) -> None:
        self.requests = requests
        self.written: list[list[int]] = [[] for _ in requests]
        self._limits = [limit if request.limit is None else min(limit, request.limit) for request in requests]
        self._stops, self._ends, self._sampling = stops, ends, sampling
        self._live = list(range(len(requests)))
        self.kept: list[int] = []
        self.dropped = False

    def take(self, logits_BV: torch.Tensor) -> torch.Tensor | None:
        """Add a token to every live row; the tokens of those that go on, or None if none does."""
        tokens_B = self._choose(logits_BV)
        self.kept = [slot for slot, token in enumerate(tokens_B.tolist()) if self._add(self._live[slot], token)]
        self.dropped = len(self.kept) < len(self._live)
        self._live = [self._live[slot] for slot in self.kept]
        return tokens_B[self.kept] if self.kept else None

    def _choose(self, logits_BV: torch.Tensor) -> torch.Tensor:
        if self._sampling is None:
            return logits_BV.argmax(-1)
        draws = [self.requests[row].draws for row in self._live]
        step = len(self.written[self._live[0]])
        return self._sampling.choose(logits_BV, torch.stack([row[step] for row in draws if row is not None]))

    def _add(self, row: int, token: int) -> bool:
        if token in self._stops:
            return False
        self.written[row].append(token)
        return len(self.written[row]) < self._limits[row] and not self._ends(self.written[row])


def _slides(model: Any) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    return bool(kinds - {"full_attention"}) or bool(getattr(config, "sliding_window", None) and not kinds)
