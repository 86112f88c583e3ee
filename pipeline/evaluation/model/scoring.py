"""Log-probabilities of given tokens, without the whole [tokens, vocabulary] matrix in memory.

Shapes: B rows, T tokens of a row, N scored tokens, D model, V vocabulary.
"""

from __future__ import annotations

import copy
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
_CPU_CACHE_BYTES = 1 << 29

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
        found: list[torch.Tensor] = []
        greedy: list[torch.Tensor] = []
        with torch.inference_mode():
            for logits_NV, targets_N in self.logits(rows, targets, cache):
                picked_N = logits_NV.gather(-1, targets_N[:, None])[:, 0]
                found.append(picked_N - logits_NV.logsumexp(-1))
                greedy.append(logits_NV.argmax(-1) == targets_N)
            logprobs_N, greedy_N = _numbers(torch.cat(found)), torch.cat(greedy)
        counts = num_scored(targets)
        return [
            RowScore(logprobs, bool(greedy.all()))
            for logprobs, greedy in zip(logprobs_N.cpu().split(counts), greedy_N.cpu().split(counts), strict=True)
        ]

    def logits(
        self, rows: Sequence[Tokens], targets: Sequence[Tokens], cache: Any = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(fp32 logits [N, V], targets [N]) of the scored positions of `score`, in order, a few at a time.

        One forward pass, when the first are asked for; call it under `torch.inference_mode`.
        """
        ids_BT, targets_BT = _padded(rows, targets, self.device)
        kept_BT = targets_BT != IGNORED
        states_ND = self._states(ids_BT, cache)[kept_BT]
        for states, wanted in zip(states_ND.split(_CHUNK), targets_BT[kept_BT].split(_CHUNK), strict=True):
            yield self._logits(states) if self._separate_head else states.float(), wanted

    def score_choices(
        self, rows: Sequence[Tokens], choices: Sequence[Tokens], cache: Any = None
    ) -> list[list[tuple[float, bool]]]:
        """(Log-probability right after row i, whether it is the likeliest) of each token of choices[i].

        One forward pass over the rows, padded on the right; `cache` as for `score`.
        """
        ids_BT, _ = _padded(rows, [[] for _ in rows], self.device)
        last_B = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        with torch.inference_mode():
            states_BD = self._states(ids_BT, cache)[torch.arange(len(rows), device=self.device), last_B]
            logits_BV = self._logits(states_BD) if self._separate_head else states_BD.float()
            logprobs_BV = _numbers(logits_BV - logits_BV.logsumexp(-1, keepdim=True))
            best = logits_BV.argmax(-1).tolist()
        found = []
        for row, tokens in enumerate(choices):
            values = logprobs_BV[row, torch.tensor(tokens, device=self.device)].double().tolist()
            found.append([(value, token == best[row]) for value, token in zip(values, tokens, strict=True)])
        return found

    def prefix(self, ids_BT: torch.Tensor, repeats: Sequence[int], before: Any = None) -> Any:
        """The cache after B prefixes of equal length, the entry of prefix i repeated `repeats[i]` times.

        `before` is the cache, with one entry, of what precedes all of them; it is left as it is.
        """
        with torch.inference_mode():
            cache = None if before is None else self.spread(before, len(ids_BT))
            options = {"input_ids": ids_BT.to(self.device), "past_key_values": cache, "use_cache": True}
            cache = self.model.base_model(**options).past_key_values
            cache.reorder_cache(torch.repeat_interleave(torch.tensor(repeats)).to(self.device))
        return cache

    def spread(self, cache: Any, count: int) -> Any:
        """A copy of a cache with one entry, that entry `count` times."""
        copied = copy.deepcopy(cache)
        copied.reorder_cache(torch.zeros(count, dtype=torch.long, device=self.device))
        return copied

    def cached_tokens(self) -> int:
        """How many tokens a cache may hold: 0.5 GiB of it on a CPU, a quarter of the free memory on a GPU."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 1)
        width = getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 1)
        size = 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize
        is_gpu = self.device.type == "cuda"
        return max((torch.cuda.mem_get_info(self.device)[0] // 4 if is_gpu else _CPU_CACHE_BYTES) // size, 1)

    def advance(self, ids_BT: torch.Tensor, cache: Any, **placement: Any) -> tuple[torch.Tensor, Any]:
        """(fp32 logits [B, V] of the token after each row, cache after the rows), given the cache before them, or None.

        `placement` is `attention_mask` and `position_ids`, where rows are padded.
        """
        options = {"input_ids": ids_BT, "past_key_values": cache, "use_cache": self.can_share, **placement}
        with torch.inference_mode():
            if not self._separate_head:
                out = self.model(**options)
                return _numbers(out.logits[:, -1].float()), getattr(out, "past_key_values", None)
            out = self.model.base_model(**options)
            return _numbers(self._logits(out.last_hidden_state[:, -1])), getattr(out, "past_key_values", None)

    def _states(self, ids_BT: torch.Tensor, cache: Any) -> torch.Tensor:
        options = {"input_ids": ids_BT, "past_key_values": cache, "use_cache": cache is not None}
        if self._separate_head:
            return self.model.base_model(**options).last_hidden_state
        return self.model(**options).logits

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


def num_scored(targets: Sequence[Tokens]) -> list[int]:
    """How many targets of each row are scored."""
    return [sum(target != IGNORED for target in row) for row in targets]


def _numbers(values: torch.Tensor) -> torch.Tensor:
    """The values, unless one is NaN: every comparison with NaN is false, so a score over it would look like any other.

    Raises:
        ValueError: one is.
    """
    if values.isnan().any():
        raise ValueError(
            "the model computes NaN on a text of this benchmark, so it has no score; its weights are broken or "
            "training diverged: look at its loss, and train with a lower lr or from another checkpoint"
        )
    return values


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
