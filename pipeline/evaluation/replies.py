"""A chat model's replies: its template around a conversation, greedy or sampled decoding with a key-value cache.

A reply depends on nothing but the conversation and its seed: not on what else is asked in the same run, nor on what an
interrupted run asked before. Here conversations are decoded one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MARK = "MARK"


@dataclass(frozen=True)
class Reply:
    """What the model said, without the token that ends its turn; `is_cut` if it was stopped by its length."""

    text: str
    is_cut: bool


class ChatReplies:
    """Replies of a causal language model through a chat template: `template`, or the tokenizer's own if that is None.

    Raises ValueError if there is none.
    """

    def __init__(self, model: Any, tokenizer: Any, template: str | None) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._template = require_template(tokenizer, template)
        self._ends = self._end_tokens()
        self._longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def replies(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        stop: Sequence[str] = (),
    ) -> list[Reply]:
        """The assistant's next turn in each of several conversations, in their order."""
        return [
            self.reply(messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop=stop)
            for messages, seed in zip(conversations, seeds, strict=True)
        ]

    def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        stop: Sequence[str] = (),
    ) -> Reply:
        """The assistant's next turn; temperature 0 is greedy. A conversation that fills the model's window gets none.

        Args:
            stop: the reply ends with the first of these texts.
        """
        import torch

        ids = self._prompt(messages)
        room = max_new_tokens if self._longest is None else min(max_new_tokens, self._longest - len(ids))
        if room < 1:
            return Reply("", True)
        device = self._model.get_input_embeddings().weight.device
        ids_BT = torch.tensor([ids], device=device)
        with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            made = self._model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=self._settings(room, temperature),
                **({"stop_strings": list(stop), "tokenizer": self._tokenizer} if stop else {}),
            )[0, len(ids) :].tolist()
        is_ended = len(made) < room or made[-1] in self._ends
        while made and made[-1] in self._ends:
            made.pop()
        text = self._tokenizer.decode(made, skip_special_tokens=True)
        return Reply(text, not is_ended and not any(one in text for one in stop))

    def _prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        encoded = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        return list(encoded["input_ids"])

    def _settings(self, max_new_tokens: int, temperature: float) -> Any:
        """Nothing of what the model's own generation_config.json prefers: a benchmark says how it samples."""
        from transformers import GenerationConfig

        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),
            use_cache=True,
            **sampling,
        )

    def _end_tokens(self) -> set[int]:
        """The end-of-text token, and the first special token that the template puts after an assistant's turn."""
        turn = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _MARK}]
        text = self._tokenizer.apply_chat_template(turn, chat_template=self._template, tokenize=False)
        after = text[text.rfind(_MARK) + len(_MARK) :]
        added = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        found = [
            (after.find(token), token) for token in {*self._tokenizer.all_special_tokens, *added} if token in after
        ]
        ends = {self._tokenizer.eos_token_id} if self._tokenizer.eos_token_id is not None else set()
        return ends | ({self._tokenizer.convert_tokens_to_ids(min(found)[1])} if found else set())


def require_template(tokenizer: Any, template: str | None) -> str:
    """The chat template to use. Raises ValueError if neither is one."""
    chosen = template or tokenizer.chat_template
    if not isinstance(chosen, str):
        name = getattr(tokenizer, "name_or_path", "") or "the model"
        raise ValueError(
            f"{name} has no chat template, which a conversation needs; set the benchmark's `template` to one, or its "
            "`rows` to the models that were instruction-tuned, such as [tuned]"
        )
    return chosen
