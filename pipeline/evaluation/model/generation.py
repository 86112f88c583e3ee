"""Text from prompts: what benchmarks of written answers ask of a model, wherever it runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.evaluation.base import cut, num_rows
from pipeline.evaluation.model.decoding import Decoder, Request, Sampling
from pipeline.evaluation.model.replies import Reply, Turn, silent
from pipeline.evaluation.model.scoring import TokenScorer

_SLACK = 4  # tokens more than a stop has bytes: some tokenizers spell a blank or a byte of its own before it


@dataclass(frozen=True)
class GenerationSettings:
    """How continuations are written. Raises ValueError for a number that is out of its range.

    Attributes:
        stop: a continuation is cut before the first of these texts that it holds.
        max_new_tokens: of one continuation, at most.
        temperature: 0 decodes greedily; all samples of a prompt are then equal.
        top_p: probability of the tokens that are sampled from; 1 is all of them.
        num_samples: continuations of each prompt.
        seed: of the draws. A prompt's samples depend on its own text and this, not on the other prompts.
    """

    stop: Sequence[str]
    max_new_tokens: int
    temperature: float
    top_p: float
    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_samples < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} and num_samples={self.num_samples} must be at least 1"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature} must not be negative and top_p={self.top_p} must be in (0, 1]"
            )

    def room(self, window: int) -> int:
        """See `prompt_room`."""
        return prompt_room(window, self.max_new_tokens)


def prompt_room(window: int, max_new_tokens: int) -> int:
    """The longest prompt, in tokens, for a model with `window` positions. Raises ValueError if none fits."""
    if max_new_tokens >= window:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room in the model's {window} positions")
    return window - max_new_tokens


class Generator(Protocol):
    """Something that continues prompts: a model in this process, or one behind an endpoint."""

    def generate(self, prompts: list[str], settings: GenerationSettings) -> list[list[str]]:
        """The continuations of each prompt."""
        ...


class LocalGenerator:
    """Generation with a loaded fp32 causal language model, batched, with a KV cache."""

    def __init__(self, model: Any, tokenizer: Any, progress: Callable[..., None] = silent, scorer: Any = None) -> None:
        scorer = scorer or TokenScorer(model)
        self.tokenizer, self._progress = tokenizer, progress
        self._encoder = TextEncoder(tokenizer, num_rows(model))
        self.decoder = Decoder(scorer)
        self._stops = stop_tokens(model, tokenizer)
        self.window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    def generate(self, prompts: list[str], settings: GenerationSettings) -> list[list[str]]:
        """See `Generator`. A prompt that does not fit is cut on the left, to the window less `max_new_tokens`."""
        room, length, num_samples = settings.room(self.window), settings.max_new_tokens, settings.num_samples
        encoded = [self._encode(prompt, room) for prompt in prompts]
        if not settings.temperature:
            texts = self.continuations(encoded, settings.stop, length)
            return [[text] * num_samples for text in texts]
        draws = [
            uniforms(settings.seed, prompt, occurrence, sample, length)
            for prompt, occurrence in zip(prompts, occurrences(prompts), strict=True)
            for sample in range(num_samples)
        ]
        repeated = [tokens for tokens in encoded for _ in range(num_samples)]
        sampling = Sampling(settings.temperature, settings.top_p)
        texts = self.continuations(repeated, settings.stop, length, draws, sampling)
        return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]

    def continuations(
        self,
        prompts: Sequence[Sequence[int]],
        stop: Sequence[str],
        max_new_tokens: int,
        draws: Sequence[torch.Tensor | None] | None = None,
        sampling: Sampling | None = None,
    ) -> list[str]:
        """The text after each prompt of tokens, cut before the first of `stop`; special tokens are left out of it."""
        draws = draws or [None] * len(prompts)
        requests = [Request(tuple(tokens), row) for tokens, row in zip(prompts, draws, strict=True)]
        total = len(requests)
        written = self.decoder.decode(
            requests,
            max_new_tokens,
            self._stops,
            self._ends(stop),
            sampling,
            lambda done: self._progress(step=done, total=total, note="answers written"),
        )
        return [self._text(tokens, stop) for tokens in written]

    def turns(
        self,
        asked: Sequence[Turn],
        ends: AbstractSet[int],
        stop: Sequence[str],
        temperature: float,
        progress: Callable[..., None] = silent,
    ) -> list[Reply]:
        """See `replies.Speaker`. Raises NoRowError for a token that the model has no row for."""
        for turn in asked:
            self._encoder.check(turn.prompt, "a conversation")
        rows = [
            Request(tuple(turn.prompt), _draws(turn.seed, turn.length) if temperature else None, turn.length)
            for turn in asked
        ]
        sampling = Sampling(temperature, 1.0) if temperature else None
        most = max((turn.length for turn in asked), default=0)
        written = self.decoder.decode(
            rows,
            most,
            frozenset(ends),
            self._ends(stop),
            sampling,
            lambda done: progress(step=done, total=len(rows), note="replies written"),
        )
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        return [
            Reply(text, len(tokens) == turn.length and not any(one in text for one in stop))
            for text, tokens, turn in zip(texts, written, asked, strict=True)
        ]

    def _encode(self, prompt: str, room: int) -> list[int]:
        tokens = self._encoder.prompt(prompt)
        if not tokens:
            raise ValueError("a prompt without a token cannot be continued; it needs at least one character")
        return tokens[-room:]

    def _ends(self, stop: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        texts = [text for text in stop if text]
        tail = max((len(text.encode()) for text in texts), default=0) + _SLACK

        def ends(tokens: Sequence[int]) -> bool:
            if not texts:
                return False
            # Every token is looked at when it is written, so a stop ends within the last few.
            near = self.tokenizer.decode(tokens[-tail:], skip_special_tokens=False)
            if not any(text in near for text in texts):
                return False
            whole = self.tokenizer.decode(tokens, skip_special_tokens=False)
            return any(text in whole for text in texts)

        return ends

    def _text(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        return cut(self.tokenizer.decode(tokens, skip_special_tokens=True), stop)


def occurrences(prompts: Iterable[str]) -> list[int]:
    """For each prompt how often it stood before: equal prompts get draws of their own."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt])
        seen[prompt] += 1
    return numbers


def row_seed(seed: int, prompt: str, occurrence: int, sample: int) -> int:
    """A seed in [0, 2^63) for one sample of one prompt, whatever stands beside it."""
    text = f"{seed}\0{occurrence}\0{sample}\0{prompt}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def uniforms(seed: int, prompt: str, occurrence: int, sample: int, count: int) -> torch.Tensor:
    """[count] float64 draws in [0, 1) of one sample of one prompt, the same on every device."""
    return _draws(row_seed(seed, prompt, occurrence, sample), count)


def _draws(seed: int, count: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=source, dtype=torch.float64)


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation settings."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = named if isinstance(named, (list, tuple)) else [named]
    return frozenset(token for token in (*found, tokenizer.eos_token_id) if token is not None)
