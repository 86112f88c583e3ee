"""How models of lm-evaluation-harness turn requests into token ids here: as training does.

For most tokenizers the ids are those of its Hugging Face model (0.4.13), which are right. They differ where that one
- puts EOS behind contexts and options, because the tokenizer puts it behind every text (`add_eos_token`);
- reads text that spells a special token as that token, which training never does;
- stops at an option of which nothing is left because a token spans it and the context;
- scores BOS itself in a rolling log-likelihood, and gives a text without a context one token of a longer prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.data.tokens.text_encoder import TextEncoder

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]


class HarnessEncoding:
    """Stands before a model class of lm-evaluation-harness, whose ways to encode it replaces."""

    encoder: TextEncoder
    max_length: int
    _loglikelihood_tokens: Callable[..., list[tuple[float, bool]]]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Ids of a prompt, or of a continuation where no special token is to be added."""
        ids = self.encoder.continuation(string) if add_special_tokens is False else self.encoder.prompt(string)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of prompts, padded to one length with an id that the mask leaves out, and that mask."""
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        width = max(map(len, rows))
        before = [width - len(row) if padding_side == "left" else 0 for row in rows]
        ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
        for i, (row, start) in enumerate(zip(rows, before, strict=True)):
            ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, start : start + len(row)] = 1
        return ids, mask

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.encoder.pair(context, continuation)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(summed natural log-probability, whether greedy decoding gives it) of each request's continuation.

        Raises ValueError for a continuation without a token.
        """
        encoded: list[Encoded] = [(request.args, *self.encoder.pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """The summed natural log-probability of each request's whole text, in lm-evaluation-harness' windows.

        The first one follows what the tokenizer puts before a text.
        """
        windows = [self._windows(request.args[0]) for request in requests]
        encoded: list[Encoded] = [(None, *window) for own in windows for window in own]
        scores = iter(self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm))
        return [sum(next(scores)[0] for _ in own) for own in windows]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        from lm_eval import utils

        before, ids = self.encoder.before_text, self.encoder.continuation(text)
        cuts = utils.get_rolling_token_windows(ids, before[-1], self.max_length, context_len=1)
        windows = [utils.make_disjoint_window(cut) for cut in cuts]
        return [(list(before), windows[0][1]), *windows[1:]] if windows else []
