"""A chat model's replies: its template around a conversation, greedy or sampled decoding, many conversations at once.

A reply depends on nothing but the conversation and its seed: not on what else is asked in the same run, nor on what an
interrupted run asked before, as far as the order of float sums allows (see `pipeline.evaluation.model.decoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.template import TemplateSettings


@dataclass(frozen=True)
class Reply:
    """What the model said, without the token that ends its turn; `is_cut` if it was stopped by its length."""

    text: str
    is_cut: bool


@dataclass(frozen=True)
class Turn:
    """A reply that is asked for: what it follows, how many tokens it has at most, and the seed of its draws."""

    prompt: Sequence[int]
    length: int
    seed: int


def silent(**_: Any) -> None:
    """Progress that nobody watches: a benchmark of several rounds tells its own."""


class Speaker(Protocol):
    """What continues conversations that are tokens already: a model in this process, or one behind a server.

    `window` is how many tokens a conversation and its reply may have together.
    """

    @property
    def tokenizer(self) -> Any: ...
    @property
    def window(self) -> int: ...

    def turns(
        self,
        asked: Sequence[Turn],
        ends: AbstractSet[int],
        stop: Sequence[str],
        temperature: float,
        progress: Callable[..., None] = silent,
    ) -> list[Reply]:
        """What follows each prompt, in their order.

        Args:
            ends: tokens that end a reply and are no part of it.
            stop: texts that end a reply and are part of it.
            temperature: 0 decodes greedily.
            progress: is told how many replies there are.
        """
        ...


class ChatReplies:
    """Replies of a causal language model through a chat template, rendered as for training: `template`, or the
    tokenizer's own if that is None.

    Raises ValueError if there is none.
    """

    def __init__(self, speaker: Speaker, template: TemplateSettings | str | None) -> None:
        self._speaker, self._encoder = speaker, require_template(speaker.tokenizer, template)
        self._ends = end_tokens(self._encoder)

    def replies(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        stop: Sequence[str] = (),
    ) -> list[Reply]:
        """The assistant's next turn in each of several conversations, in their order; temperature 0 is greedy.

        A conversation that fills the model's window gets none. A reply ends with the first text of `stop`.
        """
        prompts = [self._encoder.prompt(messages) for messages in conversations]
        turns = [
            Turn(prompt, min(max_new_tokens, self._speaker.window - len(prompt)), seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        asked = {i: turn for i, turn in enumerate(turns) if turn.length > 0}
        said = self._speaker.turns(list(asked.values()), self._ends, stop, temperature)
        found = dict(zip(asked, said, strict=True))
        return [found.get(i, Reply("", True)) for i in range(len(prompts))]


def end_tokens(encoder: ChatEncoder) -> set[int]:
    """The end-of-text token, and the first special token that the template puts after an assistant's turn."""
    tokenizer, closing = encoder.tokenizer, (encoder.closing_tokens() or [])[:1]
    return {tokenizer.convert_tokens_to_ids(token) for token in closing} | ({tokenizer.eos_token_id} - {None})


def require_template(tokenizer: Any, template: TemplateSettings | str | None) -> ChatEncoder:
    """What renders conversations with the chat template to use. Raises ValueError if there is none."""
    settings = template if isinstance(template, TemplateSettings) else TemplateSettings(template)
    if not (settings.template or tokenizer.chat_template):
        name = getattr(tokenizer, "name_or_path", "") or "the model"
        raise ValueError(
            f"{name} has no chat template, which a conversation needs; set the benchmark's `template` to one, or its "
            "`models` to those that were instruction-tuned, such as [tuned]"
        )
    return ChatEncoder(tokenizer, settings)
