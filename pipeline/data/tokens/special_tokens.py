"""Special tokens that a tokenizer puts around a text by itself, found by what it does.

Neither its class nor flags such as `add_bos_token` tell: a post-processor in tokenizer.json overrides them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

_PROBES = ("a", "The", "0", "x y")
_MOST_PROBES = 300


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a tokenizer puts before (prefix) and after (suffix) every text by itself; eos: None if it has none."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    eos: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        """Found by encoding a short text with and without them.

        Raises ValueError if the text's own ids are not found once between them.
        """
        for probe in islice(_probes(tokenizer), _MOST_PROBES):
            plain = list(tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"])
            whole = list(tokenizer(probe, verbose=False)["input_ids"])
            places = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain] if plain else []
            if len(places) == 1:
                prefix, suffix = whole[: places[0]], whole[places[0] + len(plain) :]
                return cls(tuple(prefix), tuple(suffix), tokenizer.eos_token_id)
        raise ValueError(
            f"{type(tokenizer).__name__}: what it puts around a text cannot be told, because no short text is encoded "
            "to the same ids with and without special tokens; correct the post_processor of its tokenizer.json"
        )

    @property
    def end(self) -> tuple[int, ...]:
        """The ids that end a document. Raises ValueError if the tokenizer has no end-of-text token."""
        if self.eos is None:
            raise ValueError("the tokenizer has no end-of-text token (eos_token); set one in tokenizer_config.json")
        return (*(token for token in self.suffix if token != self.eos), self.eos)


def _probes(tokenizer: Any) -> Iterator[str]:
    """Short texts; those of the vocabulary itself are for tokenizers that know few words and no other."""
    yield from _PROBES
    yield from tokenizer.get_vocab()


def spare_token(tokenizer: Any, name: str | None) -> int:
    """The id of a special token to stand for what is no text: the one of this name, or of those that begin, end or pad
    no text the one with the lowest id. Raises ValueError if there is none, or it is needed for text."""
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    special = {token.content: id for id, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special}
    spare = {content: id for content, id in special.items() if id not in needed}
    if name is None and spare:
        return next(iter(spare.values()))
    if name not in spare:
        asked = "it has none" if name is None else f"{name!r} is none"
        raise ValueError(
            f"a special token that begins, ends or pads no text has to stand for images, and {asked}; the tokenizer "
            f"has {', '.join(map(repr, spare)) or 'only special tokens that text needs: add one and save it again'}"
        )
    return spare[name]
