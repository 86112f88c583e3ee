"""Bits per byte of an assistant's turns in held-out conversations: what instruction tuning must not lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.chat.conversations import Chat
from pipeline.data.chat.encoder import ChatEncoder, UnfitChatError
from pipeline.data.chat.template import TemplateSettings, read_template
from pipeline.data.chats import ChatSource
from pipeline.data.corpus import read_sources
from pipeline.evaluation.base import Outcome, Workspace, content_hash
from pipeline.evaluation.text.passages import Passage, by_hash, check_bounds, held_out, within

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class HeldOutChat:
    """Bits per byte of the assistant's turns, given everything before them, through the chat template.

    Scored are the tokens that instruction tuning learns: a turn, with reasoning and calls as the template renders them,
    and the token that ends it. The bytes are those of what the assistant says, without that token. Trailing exchanges
    that do not fit into the window are left out whole, and so is a conversation whose first exchange does not fit or
    which the template cannot spell faithfully.

    Attributes:
        chats: a source of conversations; null reads the held-out part of the data artifact.
        sources: names of the artifact's sources to read; null reads all.
        template: a chat template in place of the artifact's or the tokenizer's own, or null; as for `ChatData`.
        window: tokens of a conversation, at most.
        max_items, max_tokens: as for HeldOutText.
        date, template_options: as for `ChatData`; null for the artifact's.
    """

    chats: ChatSource | None
    sources: Sequence[str] | None
    template: str | Mapping[str, Any] | None
    window: int
    max_items: int | None
    max_tokens: int | None
    date: str | None = None
    template_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_bounds(self, "window", "max_items", "max_tokens")
        TemplateSettings(None, self.date, self.template_options or {})

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per conversation: numerator bits of the assistant's turns, denominator their UTF-8 bytes."""
        from pipeline.evaluation.text.windows import score_passages

        encoder = ChatEncoder(tokenizer, self._settings(inputs))
        passages = (self._passage(encoder, identity, chat) for identity, chat in by_hash(self._chats(inputs)))
        return score_passages(model, within(passages, self.max_items, self.max_tokens), self.window, inputs)

    def _settings(self, inputs: Workspace) -> TemplateSettings:
        known = TemplateSettings()
        if self.chats is None and inputs.data is not None:
            known = TemplateSettings.recorded(read_sources(inputs.data))
        template = read_template(self.template, inputs.locate) or known.template
        options = known.options if self.template_options is None else self.template_options
        return TemplateSettings(template, self.date or known.date, options)

    def _chats(self, inputs: Workspace) -> Iterator[tuple[str, Any]]:
        if self.chats is None:
            return ((identity, _content(chat)) for identity, chat in held_out(inputs, self.sources, None))
        chats = self.chats.read(inputs.locate, inputs.listing)
        return ((chat.id, _content(vars(chat))) for chat in chats if isinstance(chat, Chat))

    def _passage(self, encoder: ChatEncoder, identity: str, chat: Any) -> Passage | None:
        whole = chat if isinstance(chat, dict) else {"messages": chat}
        messages, tools, options = whole["messages"], whole.get("tools") or (), whole.get("options")
        while any(message["role"] == "assistant" for message in messages):
            try:
                tokens, mask, num_bytes, _ = encoder.encode_whole(messages, tools, options)
            except UnfitChatError:
                return None
            if num_bytes and len(tokens) <= self.window:
                scored = [bool(bit) and i > 0 for i, bit in enumerate(mask)]
                name = content_hash(_content({**whole, "messages": messages}))
                return Passage(identity, name, tokens.tolist(), scored, num_bytes, spelled(messages))
            messages = messages[: _last_exchange(messages)]
        return None


def _content(chat: Mapping[str, Any]) -> Any:
    """What a conversation is told apart by: its messages, with tools and options where it has some."""
    more = {key: chat[key] for key in ("tools", "options") if chat.get(key)}
    return {"messages": list(chat["messages"]), **more} if more else chat["messages"]


def _last_exchange(messages: Messages) -> int:
    """Index of the user's last message, with which the last exchange begins."""
    return max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)


def spelled(messages: Messages) -> str:
    """A conversation for people to read."""
    return "\n\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages)
