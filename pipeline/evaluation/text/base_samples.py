"""Texts that a base writes itself, at temperature 1: what its drift is measured on without any data of the base.

Drawn from the whole distribution (no top-p, no temperature), they weigh texts as the base does. Two kinds: `free`
samples begin with nothing but the token that begins a text, `chat` samples answer a user through the chat template.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.template import TemplateSettings
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.evaluation.base import num_rows
from pipeline.ranges import COUNT, NOT_NEGATIVE, check_ranges

FILE = "samples.jsonl"
FREE, CHAT = "free", "chat"
NO_CHAT_TEMPLATE = "the base has no chat template, so its samples hold no answers to chat prompts"


@dataclass(frozen=True)
class Sample:
    """One text of the base.

    Attributes:
        id, kind: its name, and `free` or `chat`.
        prompt, tokens: ids of what it was given and of what it wrote, with the token that ends the text.
        asked, text: the user's turn (empty if free) and what the base wrote, for people to read.
    """

    id: str
    kind: str
    prompt: Sequence[int]
    tokens: Sequence[int]
    asked: str
    text: str


@dataclass(frozen=True)
class BaseSamples:
    """How many samples are drawn, and of what.

    Attributes:
        num_free: free samples.
        prompts: a user's turns, each answered once; left out where the base has no chat template.
        num_tokens: of a sample at most; it ends earlier where the base ends its text.
        seed: of the draws.
        date, template_options: what the chat template is given, as for `ChatData`.
    """

    num_free: int
    prompts: Sequence[str]
    num_tokens: int
    seed: int
    date: str | None
    template_options: Mapping[str, Any]

    def __post_init__(self) -> None:
        TemplateSettings(None, self.date, self.template_options)
        check_ranges(vars(self), {"num_free": NOT_NEGATIVE, "num_tokens": COUNT, "seed": NOT_NEGATIVE})
        if not self.num_free and not self.prompts:
            raise ValueError("num_free=0 and no prompts leave no sample to draw; give one of them")
        if not all(isinstance(prompt, str) and prompt.strip() for prompt in self.prompts):
            raise ValueError(f"prompts={list(self.prompts)} must be texts that are not empty")

    def check_base(self, window: int | None, has_template: bool | None) -> None:
        """Raise ValueError if a base could not write them. `window`: its positions; None: not known."""
        if window and self.num_tokens >= window:
            raise ValueError(
                f"num_tokens={self.num_tokens} and what they follow do not fit into the base's {window} positions; use "
                f"at most {window - 1}"
            )
        if has_template is False and not self.num_free:
            raise ValueError(f"{NO_CHAT_TEMPLATE}, and num_free=0 leaves none; draw free samples")

    def draw(self, model: Any, tokenizer: Any, progress: Callable[..., None] = lambda **_: None) -> list[Sample]:
        """The samples of a loaded fp32 causal language model, the same for the same model and seed.

        Raises:
            ValueError: a prompt does not fit, the model cannot write any, or the tokenizer has no token to begin with.
        """
        from pipeline.evaluation.model.decoding import Decoder, Request, Sampling
        from pipeline.evaluation.model.generation import occurrences, uniforms
        from pipeline.evaluation.model.scoring import TokenScorer

        window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.check_base(window, bool(tokenizer.chat_template))
        decoder, found = Decoder(TokenScorer(model)), []
        for kind, asked, prompts, ends in self._kinds(model, tokenizer):
            self._check_fit(asked, prompts, window)
            turns = zip(asked, occurrences(asked), prompts, strict=True)
            draws = [Request(tuple(ids), uniforms(self.seed, text, n, 0, self.num_tokens)) for text, n, ids in turns]
            told = functools.partial(_tell, progress, len(draws), f"{kind} samples drawn")
            ended = functools.partial(_ends, ends)
            written = decoder.decode(draws, self.num_tokens, frozenset(), ended, Sampling(1.0, 1.0), told)
            found += [
                Sample(f"{kind}/{number:03}", kind, ids, tokens, text, tokenizer.decode(tokens))
                for number, (text, ids, tokens) in enumerate(zip(asked, prompts, written, strict=True))
            ]
        return found

    def _kinds(self, model: Any, tokenizer: Any) -> Iterator[tuple[str, list[str], list[list[int]], frozenset[int]]]:
        """Kind, user's turns, prompts and the tokens that end a text."""
        from pipeline.evaluation.model.generation import stop_tokens

        encoder, ends = TextEncoder(tokenizer, num_rows(model)), stop_tokens(model, tokenizer)
        if self.num_free:
            begin = list(encoder.before_text)
            yield FREE, [""] * self.num_free, [begin] * self.num_free, ends
        if self.prompts and tokenizer.chat_template:
            chats = ChatEncoder(tokenizer, TemplateSettings(None, self.date, self.template_options))
            prompts = [chats.prompt([{"role": "user", "content": text}]) for text in self.prompts]
            for text, ids in zip(self.prompts, prompts, strict=True):
                encoder.check(ids, f"the prompt {text[:40]!r}")
            closing = (chats.closing_tokens() or [])[:1]
            yield CHAT, list(self.prompts), prompts, ends | set(tokenizer.convert_tokens_to_ids(closing))

    def _check_fit(self, asked: Sequence[str], prompts: Sequence[Sequence[int]], window: int | None) -> None:
        for text, ids in zip(asked, prompts, strict=True):
            if window and len(ids) + self.num_tokens > window:
                raise ValueError(
                    f"the prompt {text[:40]!r} of {len(ids)} tokens and num_tokens={self.num_tokens} do not fit into "
                    f"the base's {window} positions; shorten one of them"
                )


def _ends(ends: frozenset[int], tokens: Sequence[int]) -> bool:
    return tokens[-1] in ends


def _tell(progress: Callable[..., None], total: int, note: str, done: int) -> None:
    progress(step=done, total=total, note=note)


def write_samples(samples: Sequence[Sample], directory: Path) -> Path:
    """Write `samples.jsonl` into a directory, a line each; returns its path."""
    path = directory / FILE
    path.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples), encoding="utf-8")
    return path


def read_samples(directory: Path) -> list[Sample]:
    """What `write_samples` wrote. Raises ValueError, naming the file, if it is damaged."""
    path = directory / FILE
    try:
        return [Sample(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; rerun the stage samples") from error
