"""Text from prompts by the model's own `generate`, one prompt at a time: slow, and plain enough to be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.evaluation.base import content_hash
from pipeline.evaluation.problems import cut


class PlainGenerator:
    """Continues prompts with a loaded causal language model. Raises ValueError if a prompt leaves no room to answer."""

    def __init__(self, model: Any, tokenizer: Any, progress: Callable[..., None]) -> None:
        self._model, self._tokenizer, self._progress = model, tokenizer, progress
        self._window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    def generate(
        self,
        prompts: list[str],
        stop: list[str],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        num_samples: int,
        seed: int,
    ) -> list[list[str]]:
        """See `pipeline.evaluation.code.Generator`. A prompt's draws depend on its text and `seed` alone.

        A prompt that is too long loses its beginning.
        """
        if max_new_tokens >= self._window:
            raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room in the model's {self._window} positions")
        answers = []
        for number, prompt in enumerate(prompts):
            self._progress(step=number, total=len(prompts), note="problems answered")
            drawn = [] if temperature == 0 else [("do_sample", True), ("temperature", temperature), ("top_p", top_p)]
            seeds = [int(content_hash(prompt, seed, sample), 16) >> 1 for sample in range(num_samples)]
            answers.append([self._answer(prompt, stop, max_new_tokens, dict(drawn), one) for one in seeds])
        return answers

    def _answer(self, prompt: str, stop: Sequence[str], most: int, drawn: dict[str, Any], seed: int) -> str:
        tokens = self._tokenizer(prompt, return_tensors="pt")["input_ids"][:, -(self._window - most) :]
        tokens = tokens.to(self._model.device)
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            written = self._model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=most, top_k=None if not drawn else 0,
                stop_strings=list(stop) or None, tokenizer=self._tokenizer,
                **(drawn or {"do_sample": False, "temperature": None, "top_p": None}),
            )  # fmt: skip
        return cut(self._tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True), stop)
