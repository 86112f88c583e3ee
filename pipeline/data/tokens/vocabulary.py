"""Token ids against the rows of the model's embedding, whose number is not the tokenizer's length.

A padded embedding has more rows than the tokenizer has tokens; a tokenizer may have tokens that no row was made for,
and gaps between its ids. A token without a row matters only where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import jinja2
import numpy as np

from pipeline.data.tokens.special_tokens import SpecialTokens

_SHOWN = 5
_TURNS = [{"role": "user", "content": "How many blocks?"}, {"role": "assistant", "content": "Forty."}]
_EXAMPLES = (_TURNS, [{"role": "system", "content": "Be brief."}, *_TURNS])


class NoRowError(ValueError):
    """A token that is used has no row in the model's embedding."""


def highest_id(tokenizer: Any) -> int:
    """The highest id of a tokenizer; ids may have gaps, so its length does not tell."""
    return max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder])


def check_rows(ids: Sequence[int] | np.ndarray, num_rows: int, what: str, tokenizer: Any = None) -> None:
    """Raise NoRowError if one of the ids, which `what` holds, has no row in an embedding of `num_rows`."""
    for token in {int(np.min(ids)), int(np.max(ids))} if len(ids) else ():
        if not 0 <= token < num_rows:
            raise NoRowError(f"{what} holds {_named(token, tokenizer)}, {_remedy(num_rows, tokenizer)}")


def check_used(tokenizer: Any, num_rows: int) -> None:
    """Raise NoRowError if a token has no row that ordinary text, the chat template or a document's ends give.

    A token that was only added, such as a `<pad>` behind the last row, is given by none of them; a text that spells it
    is refused when it is encoded.
    """
    used = {**dict(_of_text(tokenizer)), **dict(_of_template(tokenizer)), **dict(_of_ends(tokenizer))}
    if missing := sorted(token for token in used if token >= num_rows):
        shown = "; ".join(f"{_named(token, tokenizer)}, {used[token]}" for token in missing[:_SHOWN])
        more = f"; and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise NoRowError(f"the tokenizer uses {shown}{more}, {_remedy(num_rows, tokenizer)}")


def _of_ends(tokenizer: Any) -> Iterator[tuple[int, str]]:
    around = SpecialTokens.of(tokenizer)
    yield from ((token, "which it puts around a text") for token in (*around.prefix, *around.suffix))
    for name in ("bos_token", "eos_token"):
        if (token := getattr(tokenizer, f"{name}_id")) is not None:
            yield token, f"its {name}"


def _of_text(tokenizer: Any) -> Iterator[tuple[int, str]]:
    """Every token of the vocabulary that was not added: text may give it."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        found = set(backend.get_vocab(with_added_tokens=False).values()) - set(tokenizer.added_tokens_decoder)
        yield from ((token, "which text gives") for token in found)


def _of_template(tokenizer: Any) -> Iterator[tuple[int, str]]:
    """What the tokenizer's own chat template gives. A template that fails is refused where conversations are needed."""
    for messages in _EXAMPLES if tokenizer.chat_template else ():
        for prompt in (False, True):
            with suppress(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                yield from ((token, "which its chat template gives") for token in ids)


def _named(token: int, tokenizer: Any) -> str:
    name = None if tokenizer is None else tokenizer.convert_ids_to_tokens(token)
    return f"the token id {token}" if name is None else f"the token {name!r} (id {token})"


def _remedy(num_rows: int, tokenizer: Any) -> str:
    size = "NUMBER" if tokenizer is None else highest_id(tokenizer) + 1
    return (
        f"but the model's embedding has {num_rows} rows (ids 0 to {num_rows - 1}); give the model more rows with "
        f"transformers' resize_token_embeddings({size}), or a tokenizer that does not use the token"
    )
