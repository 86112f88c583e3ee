"""Log-probabilities of given tokens, without the whole [tokens, vocabulary] matrix in memory.

Shapes: B rows, T tokens of a row, N scored tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

IGNORED = -100
_CHUNK = 256  # scored tokens whose logits stand in memory at once
# Of the probe, relative to its largest logit. The same hidden states under the same head differ by nothing; a prefix
# run apart differs by float noise, which large activations amplify (3e-4 has been seen in fp32). What is wrong is off
# by far more than either.
_HEAD_TOLERANCE, _CACHE_TOLERANCE = 1e-5, 1e-2
_PROBE_TOKENS = 6

T = TypeVar("T")
Tokens = Sequence[int]


@dataclass(frozen=True)
class RowScore:
    """One row's scored tokens, in order: natural log-probability of each, and whether each was the likeliest."""

    logprobs: torch.Tensor
    greedy: bool


class TokenScorer:
    """Scores tokens with an fp32 causal language model.

    The output head is applied by hand to the last hidden state, and a shared prefix is computed once and kept in the
    model's own cache. Both are tried on a few tokens first: a model that scales or caps its logits in a way not known
    here, or that keeps no cache which can be split, is run whole instead. Slower, the same numbers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        # On a CPU 512 tokens are a fifth faster than 192, and 1024 no faster than 512; a GPU wants many.
        self.batch_tokens = 16384 if self.device.type == "cuda" else 512
        probe = torch.arange(1, _PROBE_TOKENS + 1, device=self.device)[None] % model.config.get_text_config().vocab_size
        self._separate_head = False
        with torch.inference_mode():
            whole = model(input_ids=probe, use_cache=False).logits.float()
            self._separate_head = self._head_agrees(probe, whole)
            self.can_share = self._cache_agrees(probe, whole)
        if not self._separate_head:  # the logits of a whole batch stand in memory at once
            self.batch_tokens = min(self.batch_tokens, 2048)

    def score(self, rows: Sequence[Tokens], targets: Sequence[Tokens], cache: Any = None) -> list[RowScore]:
        """Score the rows, padded on the right, in one forward pass.

        Args:
            rows: B rows of input tokens, each of at least one token.
            targets: for each row the tokens that its last len(targets[i]) positions are to predict, or IGNORED.
            cache: of a prefix that precedes every row, one entry per row.
        """
        ids_BT, targets_BT = _padded(rows, targets, self.device)
        with torch.inference_mode():
            states = self._states(ids_BT, cache)
            kept = targets_BT != IGNORED
            logprobs_N, greedy_N = self._gather(states[kept], targets_BT[kept])
        counts = [sum(target != IGNORED for target in row) for row in targets]
        return [
            RowScore(logprobs, bool(greedy.all()))
            for logprobs, greedy in zip(logprobs_N.cpu().split(counts), greedy_N.cpu().split(counts), strict=True)
        ]

    def prefix(self, ids_BT: torch.Tensor, repeats: Sequence[int]) -> Any:
        """The cache after B prefixes of equal length, the entry of prefix i repeated `repeats[i]` times."""
        with torch.inference_mode():
            cache = self.model.base_model(input_ids=ids_BT.to(self.device), use_cache=True).past_key_values
            cache.reorder_cache(torch.repeat_interleave(torch.tensor(repeats)).to(self.device))
        return cache

    def _states(self, ids_BT: torch.Tensor, cache: Any) -> torch.Tensor:
        options = {"input_ids": ids_BT, "past_key_values": cache, "use_cache": cache is not None}
        if self._separate_head:
            return self.model.base_model(**options).last_hidden_state
        return self.model(**options).logits

    def _gather(self, states_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, greedy = [], []
        for states, targets in zip(states_ND.split(_CHUNK), targets_N.split(_CHUNK), strict=True):
            logits = self._logits(states) if self._separate_head else states.float()
            picked = logits.gather(-1, targets[:, None])[:, 0]
            logprobs.append(picked - logits.logsumexp(-1))
            greedy.append(logits.argmax(-1) == targets)
        return torch.cat(logprobs), torch.cat(greedy)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        config, logits = self.model.config.get_text_config(), self.model.get_output_embeddings()(states).float()
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _head_agrees(self, probe: torch.Tensor, whole: torch.Tensor) -> bool:
        if self.model.get_output_embeddings() is None or self.model.base_model is self.model:
            return False
        states = getattr(self.model.base_model(input_ids=probe, use_cache=False), "last_hidden_state", None)
        return states is not None and _close(self._logits(states), whole, _HEAD_TOLERANCE)

    def _cache_agrees(self, probe: torch.Tensor, whole: torch.Tensor) -> bool:
        first, rest = probe[:, :3], probe[:, 3:]
        cache: Any = getattr(self.model.base_model(input_ids=first, use_cache=True), "past_key_values", None)
        if not hasattr(cache, "reorder_cache"):
            return False
        cache.reorder_cache(torch.zeros(2, dtype=torch.long, device=self.device))
        logits = self.model(input_ids=rest.expand(2, -1), past_key_values=cache, use_cache=True).logits.float()
        return _close(logits, whole[:, 3:].expand_as(logits), _CACHE_TOLERANCE)


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _padded(
    rows: Sequence[Tokens], targets: Sequence[Tokens], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # Padding stands to the right, where causal attention cannot see it: no mask is needed, on any architecture.
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    wanted = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        wanted[i, len(row) - len(target) : len(row)] = torch.tensor(target, dtype=torch.long)
    return ids.to(device), wanted.to(device)


def batches(items: Sequence[T], lengths: Sequence[int], budget: int) -> Iterator[list[T]]:
    """Group items so that (items in a group) x (longest of the group) stays within `budget` tokens, longest first.

    A single item longer than the budget forms a group of its own.
    """
    group: list[T] = []
    widest = 0
    for index in sorted(range(len(items)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * widest > budget:
            yield group
            group = []
        widest = widest if group else lengths[index]
        group.append(items[index])
    if group:
        yield group
