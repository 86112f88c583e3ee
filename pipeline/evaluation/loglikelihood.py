"""lm-evaluation-harness' Hugging Face model with a faster way to score options.

Encoding, truncation and the meaning of a score are inherited from HFLM and unchanged. What differs: the options of one
item share the tokens they begin with (HellaSwag's four endings share the whole context), and the model runs over those
once; and only the scored positions reach the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from pipeline.evaluation.scoring import TokenScorer


@dataclass(frozen=True)
class _Option:
    """One request: its place among all requests, the input tokens, and the tokens its last positions predict."""

    place: int
    inputs: list[int]
    targets: list[int]


@dataclass(frozen=True)
class _Group:
    """The options of one item. `shared`: how many first input tokens they have in common before anything is scored."""

    options: list[_Option]
    shared: int

    def cost(self, shared: int) -> int:
        """Tokens of the padded pass over what follows `shared` tokens."""
        return len(self.options) * max(len(option.inputs) - shared for option in self.options)


class SharedPrefixLM(HFLM):
    """HFLM over a model that is already loaded; `loglikelihood` runs the common beginning of an item's options once.

    Generation and rolling log-likelihoods are HFLM's own.
    """

    def __init__(self, model: Any, tokenizer: Any, progress: Callable[..., None]) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        self._scorer = TokenScorer(model)
        self._progress = progress
        self.tokens_run = 0
        """Input tokens the model has run over, padding included."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(summed natural log-probability, whether greedy decoding gives it) of each request's continuation.

        Requests of one document are expected side by side, as lm-evaluation-harness builds them.
        """
        self._groups_of = [(request.task_name, request.doc_id) for request in requests]
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **_: Any) -> list[tuple[float, bool]]:
        owners = self._groups_of if len(self._groups_of) == len(requests) else list(range(len(requests)))
        options = [self._option(place, *request[1:]) for place, request in enumerate(requests)]
        groups = [self._group([options[i] for i in places]) for places in _runs(owners)]
        found: dict[int, tuple[float, bool]] = {}
        for batch in self._batches(groups):
            found.update(self._score(batch))
            self._progress(step=len(found), total=len(options), note="options scored")
        return [found[place] for place in range(len(options))]

    def _option(self, place: int, context: list[int], continuation: list[int]) -> _Option:
        if not continuation or len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens cannot be scored; it needs 1 to {self.max_length}"
            )
        whole = (context + continuation)[-(self.max_length + 1) :]
        return _Option(place, whole[:-1], continuation)

    def _group(self, options: list[_Option]) -> _Group:
        if len(options) == 1 or not self._scorer.can_share:
            return _Group(options, 0)
        columns = zip(*(option.inputs for option in options), strict=False)
        common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        # The position that predicts the first scored token stays with the option, so that a prefix is never scored.
        return _Group(options, min(common, *(len(o.inputs) - len(o.targets) for o in options)))

    def _batches(self, groups: Sequence[_Group]) -> Iterator[list[_Group]]:
        # A batch cuts all its prefixes to the shortest; the rest of a longer one is computed with each option. Sorting
        # by prefix length keeps those rests short, and prefixes of one length need no padding and no mask.
        batch: list[_Group] = []
        for group in sorted(groups, key=lambda g: (g.shared, g.cost(g.shared))):
            if batch and self._cost([*batch, group]) > self._scorer.batch_tokens:
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _cost(self, batch: Sequence[_Group]) -> int:
        shared = batch[0].shared
        rows = sum(len(group.options) for group in batch)
        return rows * max(group.cost(shared) // len(group.options) for group in batch) + shared * len(batch)

    def _score(self, batch: Sequence[_Group]) -> Iterator[tuple[int, tuple[float, bool]]]:
        shared, cache = batch[0].shared, None
        self.tokens_run += self._cost(batch)
        if shared:
            prefixes = torch.tensor([group.options[0].inputs[:shared] for group in batch])
            cache = self._scorer.prefix(prefixes, [len(group.options) for group in batch])
        options = [option for group in batch for option in group.options]
        scores = self._scorer.score([o.inputs[shared:] for o in options], [o.targets for o in options], cache)
        for option, row in zip(options, scores, strict=True):
            yield option.place, (float(row.logprobs.double().sum()), row.greedy)


def _runs(owners: Sequence[Any]) -> Iterator[list[int]]:
    for _, run in groupby(range(len(owners)), key=lambda place: owners[place]):
        yield list(run)
