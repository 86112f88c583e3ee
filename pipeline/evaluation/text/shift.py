"""How far training moved a model's choice of tokens from the base's (Lin et al. 2023, arXiv 2312.01552, section 2).

The model answers greedily; for each token of its answer the base, given the same text so far, is asked for that token's
rank. Rank 1 is unshifted, 2 and 3 are marginal, anything beyond is shifted: the shares of the paper's Figure 6.

Shapes: T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pipeline.data.chat.encoder import ChatEncoder
from pipeline.data.chat.template import TemplateSettings
from pipeline.data.sources.documents import RowSource, describe
from pipeline.data.sources.rows import Row, field_value
from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.data.tokens.vocabulary import check_rows
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, num_rows
from pipeline.evaluation.model.reference import load_reference
from pipeline.evaluation.text.passages import by_hash, check_bounds

if TYPE_CHECKING:
    import torch

METRIC = "unshifted"
MARGINAL = 3
"""The largest rank of a marginal token."""
_LISTED = 12  # shifted tokens that an item names


class Moves(NamedTuple):
    """Of each token of an answer: its rank with the base, int64[T], and KL(model || base) there in nats, float64[T]."""

    ranks: torch.Tensor
    divergences: torch.Tensor


@dataclass(frozen=True)
class TokenShift:
    """The share of unshifted tokens in a model's greedy answers; marginal, shifted and KL divergence are its parts.

    Both models read the same token ids, so they must have one vocabulary. An item is a prompt.

    Attributes:
        prompts: rows to make prompts of.
        prompt: the text of a prompt, with {fields} of a row.
        is_chat: put the prompt through the model's chat template, if it has one, as a user's turn.
        window: tokens of prompt and answer at most; longer prompts are left out.
        max_new_tokens: of an answer.
        max_items: prompts in the order of their content hashes; null for all.
        edges: ascending last positions of the ranges that the answer is broken into, beside the whole.
        date, template_options: what the chat template is given, as for `ChatData`.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference",)
    prompts: RowSource
    prompt: str
    is_chat: bool
    window: int
    max_new_tokens: int
    max_items: int | None
    edges: Sequence[int]
    date: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TemplateSettings(None, self.date, self.template_options)
        check_bounds(self, "window", "max_new_tokens", "max_items")
        check_edges(self.edges)
        if self.max_new_tokens >= self.window:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in window={self.window}"
            )

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per prompt: numerator its unshifted tokens, denominator its tokens.

        Raises:
            ValueError: there is no second model, it has another vocabulary, no prompt fits, or a token has no row.
        """
        if inputs.reference is None:
            raise ValueError(
                "token shift is measured against a second model; name the row in `reference`, such as base"
            )
        base = load_reference(inputs.reference, model, tokenizer)
        prompts, items = list(self._encoded(tokenizer, inputs)), []
        total = len(prompts)
        for text, ids in prompts:
            check_rows(ids, num_rows(model), f"the prompt {text[:40]!r}", tokenizer)
        answers = _greedy(
            model,
            tokenizer,
            [ids for _, ids in prompts],
            self.max_new_tokens,
            lambda done: inputs.progress(step=done, total=2 * total, note="answers written"),
        )
        for number, ((text, ids), answer) in enumerate(zip(prompts, answers, strict=True)):
            inputs.progress(step=total + number, total=2 * total, note="answers compared")
            items.append(self._item(text, answer, compare(model, base, ids, answer), tokenizer))
        return Outcome(METRIC, True, tuple(items))

    def _encoded(self, tokenizer: Any, inputs: Workspace) -> Iterator[tuple[str, list[int]]]:
        """The chosen prompts, as text and as ids."""
        room, found = self.window - self.max_new_tokens, 0
        ids_of = self._ids(tokenizer)
        for _, text in by_hash(self._texts(inputs)):
            ids = ids_of(text)
            if 0 < len(ids) <= room:
                found += 1
                yield text, ids
            if found == self.max_items:
                return
        if not found:
            raise ValueError(f"no prompt of {describe(self.prompts)} has from 1 to {room} tokens; widen `window`")

    def _texts(self, inputs: Workspace) -> Iterator[tuple[str, str]]:
        texts: dict[str, str] = {}
        for row in self.prompts.rows(inputs.locate, inputs.listing):
            if not isinstance(row, Row):
                raise ValueError(f"prompts: row {row.id} is {row.reason}; every row is needed")
            text = _filled(self.prompt, row)
            texts.setdefault(text, row.id)  # the same prompt twice would be the same item twice
        yield from ((identity, text) for text, identity in texts.items())

    def _ids(self, tokenizer: Any) -> Callable[[str], list[int]]:
        if not (self.is_chat and tokenizer.chat_template):
            return TextEncoder(tokenizer).prompt
        encoder = ChatEncoder(tokenizer, TemplateSettings(None, self.date, self.template_options))
        return lambda text: encoder.prompt([{"role": "user", "content": text}])

    def _item(self, text: str, answer: Sequence[int], moves: Moves, tokenizer: Any) -> Item:
        unshifted, marginal = moves.ranks == 1, (moves.ranks > 1) & (moves.ranks <= MARGINAL)
        shifted, n = moves.ranks > MARGINAL, float(len(answer))
        kinds = {"unshifted": unshifted, "marginal": marginal, "shifted": shifted}
        parts = {name: (float(kind.sum()), n) for name, kind in kinds.items()}
        parts["KL, nats"] = (float(moves.divergences.sum()), n)
        for first, last in ranges(self.edges, len(answer)):
            inside = slice(first - 1, last)
            where = f"unshifted at {range_name(first, self.edges)}"
            parts[where] = (float(unshifted[inside].sum()), float(len(unshifted[inside])))
        listed = [
            f"{tokenizer.decode([answer[i]])!r} (rank {int(moves.ranks[i])})"
            for i in moves.ranks.argsort(descending=True)[:_LISTED].tolist()
            if moves.ranks[i] > MARGINAL
        ]
        return Item(
            content_hash(text),
            content_hash(text, self.max_new_tokens, self.is_chat),
            float(unshifted.sum()),
            n,
            prompt=text,
            answer=tokenizer.decode(list(answer)),
            gold=f"Shifted furthest: {', '.join(listed)}" if listed else "No token is shifted.",
            parts=parts,
        )


def compare(model: Any, base: Any, prompt: Sequence[int], answer: Sequence[int]) -> Moves:
    """Ranks and divergences of an answer's tokens after a prompt."""
    import torch

    device = model.get_input_embeddings().weight.device
    ids_BT = torch.tensor([[*prompt, *answer]], device=device)
    with torch.inference_mode():
        own_TV, base_TV = (
            one(input_ids=ids_BT[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :].double()
            for one in (model, base)
        )
        chosen_T = base_TV.gather(-1, ids_BT[0, len(prompt) :, None])
        ranks = 1 + (base_TV > chosen_T).sum(-1)
        own_TV, base_TV = own_TV.log_softmax(-1), base_TV.log_softmax(-1)
        divergences = (own_TV.exp() * (own_TV - base_TV)).sum(-1)
    return Moves(ranks.cpu(), divergences.cpu())


def check_edges(edges: Sequence[int]) -> None:
    """Raise ValueError if the last positions of ranges are not ascending and positive."""
    if list(edges) != sorted(set(edges)) or (edges and edges[0] < 1):
        raise ValueError(f"edges={list(edges)} must be ascending positions of at least 1")


def ranges(edges: Sequence[int], length: int) -> Iterator[tuple[int, int]]:
    """(first, last) of every range of positions, counted from 1, that a text of `length` tokens reaches into."""
    for first, last in zip([1, *(edge + 1 for edge in edges)], [*edges, length], strict=True):
        if first <= length:
            yield first, min(last, length)


def range_name(first: int, edges: Sequence[int]) -> str:
    """`17–64`, or `65+` for what lies beyond the last edge."""
    last = next((edge for edge in edges if edge >= first), None)
    return f"{first}+" if last is None else f"{first}–{last}"


def _greedy(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, done: Callable[[int], None]
) -> list[list[int]]:
    """The model's greedy answers; the token that ends one is part of it, as ending is a choice too."""
    from pipeline.evaluation.model.decoding import Decoder, Request
    from pipeline.evaluation.model.generation import stop_tokens
    from pipeline.evaluation.model.scoring import TokenScorer

    last = stop_tokens(model, tokenizer)
    requests = [Request(tuple(ids)) for ids in prompts]
    decoder = Decoder(TokenScorer(model))
    return decoder.decode(requests, max_new_tokens, frozenset(), lambda tokens: tokens[-1] in last, None, done)


def _filled(template: str, row: Row) -> str:
    def value(match: re.Match[str]) -> str:
        try:
            return str(field_value(row.fields, match[1]))
        except KeyError as error:
            raise ValueError(f"prompts, row {row.id}: {error.args[0]}") from error

    return re.sub(r"\{([\w.]+)\}", value, template)
