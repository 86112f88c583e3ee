"""What a model writes after a few fixed prompts, greedily: for people to read beside its base's. It is no score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.template import TemplateSettings
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, num_rows
from pipeline.records.items import NUM_WRITTEN

BEGINNING, QUESTION = "beginning", "question"
NO_CHAT = "Without answers to questions: the model has no chat template."
NO_PROMPTS = "give some beginnings that are shorter (questions need a chat template)"


class _Prompt(NamedTuple):
    """A prompt as a person reads it, its kind, its ids and the tokens that end what follows."""

    text: str
    kind: str
    ids: Sequence[int]
    ends: frozenset[int]


@dataclass(frozen=True)
class Writing:
    """Greedy continuations of fixed prompts.

    Attributes:
        beginnings: texts that the model continues as they stand.
        questions: a user's turns, answered through the model's own chat template; left out where it has none.
        num_tokens: of a continuation, at most.
        date, template_options: what the chat template is given, as for `ChatData`.
    """

    beginnings: Sequence[str]
    questions: Sequence[str]
    num_tokens: int
    date: str | None
    template_options: Mapping[str, Any]

    def __post_init__(self) -> None:
        TemplateSettings(None, self.date, self.template_options)
        texts = [*self.beginnings, *self.questions]
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens={self.num_tokens} must be at least 1")
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"beginnings and questions hold {texts}; at least one text is required, and none empty")
        if len(set(texts)) != len(texts):
            raise ValueError("a text stands twice among beginnings and questions; give each once")

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per prompt: what was asked and what was written; the numerator is how many tokens that is.

        Where the model has less room, less is written. Raises ValueError if it can be given none of the prompts.
        """
        from pipeline.evaluation.model.decoding import Decoder, Request
        from pipeline.evaluation.model.scoring import TokenScorer

        window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        every = list(self._prompts(model, tokenizer))
        prompts = [prompt for prompt in every if len(prompt.ids) < window]
        if not prompts:
            raise ValueError(f"none of {len(every)} prompts can be continued in {window} positions; {NO_PROMPTS}")
        requests = [Request(tuple(one.ids), None, min(self.num_tokens, window - len(one.ids))) for one in prompts]
        ends = frozenset().union(*(prompt.ends for prompt in prompts))  # one batch costs little more than one prompt
        total = len(prompts)
        written = Decoder(TokenScorer(model)).decode(
            requests, self.num_tokens, ends, lambda _: False, None,
            lambda done: inputs.progress(step=done, total=total, note="texts written"),
        )  # fmt: skip
        items = tuple(_item(prompt, tokens, tokenizer) for prompt, tokens in zip(prompts, written, strict=True))
        return Outcome(NUM_WRITTEN, True, items, tuple(self._notes(tokenizer, len(every) - len(prompts))))

    def _notes(self, tokenizer: Any, num_long: int) -> Iterator[str]:
        if self.questions and not tokenizer.chat_template:
            yield NO_CHAT
        if num_long:
            yield f"Without {num_long} prompts that are longer than the model's window."

    def _prompts(self, model: Any, tokenizer: Any) -> Iterator[_Prompt]:
        from pipeline.evaluation.model.generation import stop_tokens

        encoder, ends = TextEncoder(tokenizer, num_rows(model)), stop_tokens(model, tokenizer)
        for text in self.beginnings:
            yield _Prompt(text, BEGINNING, encoder.prompt(text), ends)
        if not (self.questions and tokenizer.chat_template):
            return
        chats = ChatEncoder(tokenizer, TemplateSettings(None, self.date, self.template_options))
        closing = frozenset(tokenizer.convert_tokens_to_ids((chats.closing_tokens() or [])[:1]))
        for text in self.questions:
            ids = chats.prompt([{"role": "user", "content": text}])
            encoder.check(ids, f"the question {text[:40]!r}")
            yield _Prompt(text, QUESTION, ids, ends | closing)


def _item(prompt: _Prompt, tokens: Sequence[int], tokenizer: Any) -> Item:
    name = content_hash(prompt.kind, prompt.text)
    answer = tokenizer.decode(tokens, skip_special_tokens=True)
    return Item(f"{prompt.kind}/{name}", name, float(len(tokens)), 1.0, prompt.kind, prompt=prompt.text, answer=answer)
