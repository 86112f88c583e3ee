"""Bits per byte of an assistant's turns in held-out conversations: what instruction tuning must not lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.chat import ChatEncoder, UnfitChatError
from pipeline.data.chats import ChatSource
from pipeline.data.conversations import Chat
from pipeline.data.corpus import read_sources
from pipeline.evaluation.base import Inputs, Outcome, content_hash
from pipeline.evaluation.passages import Passage, by_hash, check_bounds, held_out, within

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class HeldOutChat:
    """Bits per byte of the assistant's turns, given everything before them, through the chat template.

    Scored are the tokens that instruction tuning learns: the text of a turn and the token that ends it. The bytes are
    those of the text alone. Trailing exchanges that do not fit into the window are left out whole, and so is a
    conversation whose first exchange does not fit or which the template cannot spell faithfully.

    Attributes:
        chats: a source of conversations; null reads the held-out part of the data artifact.
        sources: names of the artifact's sources to read; null reads all.
        template: a chat template in place of the artifact's or the tokenizer's own, or null.
        window: tokens of a conversation, at most.
        max_items, max_tokens: as for HeldOutText.
    """

    chats: ChatSource | None
    sources: Sequence[str] | None
    template: str | None
    window: int
    max_items: int | None
    max_tokens: int | None

    def __post_init__(self) -> None:
        check_bounds(self, "window", "max_items", "max_tokens")

    def run(self, model: Any, tokenizer: Any, inputs: Inputs) -> Outcome:
        """One item per conversation: numerator bits of the assistant's turns, denominator their UTF-8 bytes."""
        from pipeline.evaluation.windows import score_passages

        encoder = ChatEncoder(tokenizer, self.template or self._recorded_template(inputs))
        passages = (self._passage(encoder, identity, chat) for identity, chat in by_hash(self._chats(inputs)))
        return score_passages(model, within(passages, self.max_items, self.max_tokens), self.window, inputs)

    def _recorded_template(self, inputs: Inputs) -> str | None:
        if self.chats is not None or inputs.data is None:
            return None
        return read_sources(inputs.data).get("chat_template")

    def _chats(self, inputs: Inputs) -> Iterator[tuple[str, Messages]]:
        if self.chats is None:
            return held_out(inputs, self.sources, "messages")
        chats = self.chats.read(inputs.locate, inputs.listing)
        return ((chat.id, chat.messages) for chat in chats if isinstance(chat, Chat))

    def _passage(self, encoder: ChatEncoder, identity: str, messages: Messages) -> Passage | None:
        while any(message["role"] == "assistant" for message in messages):
            try:
                tokens, mask = encoder.encode(messages)
            except UnfitChatError:
                return None
            if len(tokens) <= self.window:
                turns = (message["content"].strip() for message in messages if message["role"] == "assistant")
                num_bytes = sum(len(turn.encode()) for turn in turns)
                scored = [bool(bit) and i > 0 for i, bit in enumerate(mask)]
                return Passage(identity, content_hash(messages), tokens.tolist(), scored, num_bytes, spelled(messages))
            messages = messages[:-2]
        return None


def spelled(messages: Messages) -> str:
    """A conversation for people to read."""
    return "\n\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages)
