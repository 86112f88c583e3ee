"""lm-evaluation-harness' Hugging Face model with a faster way to score options and to write answers.

Truncation and the meaning of a score are inherited from HFLM and unchanged. Text becomes ids as in training, which is
as HFLM does it but for a few tokenizers (see `harness_encoding`). What differs beside: tokens that several requests
begin with are run once (the examples of a prompt that many items share, then the context that the options of one item
share); options of one token are read off one position; only scored positions reach the vocabulary; and answers are
written in batches whose rows leave as they are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from pipeline.data.tokens.text_encoder import TextEncoder
from pipeline.evaluation.base import num_rows
from pipeline.evaluation.model.generation import LocalGenerator
from pipeline.evaluation.model.scoring import TokenScorer
from pipeline.evaluation.tasks.grouping import Cluster, Group, Option, batches, clusters, grouped
from pipeline.evaluation.tasks.harness_encoding import HarnessEncoding

Found = tuple[int, tuple[float, bool]]


class EncodedHFLM(HarnessEncoding, HFLM):
    """HFLM over a model that is already loaded, as its command line builds it, with text encoded as in training."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        HFLM.__init__(self, pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=1)
        self.encoder = TextEncoder(tokenizer, num_rows(model))


class SharedPrefixLM(EncodedHFLM):
    """What requests have in common at their beginning is run once. Sampled text is HFLM's own."""

    def __init__(self, model: Any, tokenizer: Any, progress: Callable[..., None]) -> None:
        super().__init__(model, tokenizer)
        self._scorer = TokenScorer(model)
        self._progress = progress
        self._groups_of: list[Any] = []
        self.tokens_run = 0
        """Input tokens the model has run over to score options, padding included."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(summed natural log-probability, whether greedy decoding gives it) of each request's continuation.

        Requests of one document are expected side by side, as lm-evaluation-harness builds them.
        """
        self._groups_of = [(request.task_name, request.doc_id) for request in requests]
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """See `HarnessEncoding`."""
        self._groups_of = []
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The text that follows each request's context, up to one of its stops.

        Greedy requests are written here, HFLM writes those that sample. The model's own generation settings bear on
        neither: `pipeline.models.load` leaves them out.
        """
        found: dict[int, str] = {}
        for kwargs, places in _by_settings(requests):
            settings = _greedy(kwargs, self.max_gen_toks)
            own = [requests[place] for place in places]
            texts = super().generate_until(own, True) if settings is None else self._write(own, *settings)
            found.update(zip(places, texts, strict=True))
        return [found[place] for place in range(len(requests))]

    def _write(self, requests: Sequence[Any], until: list[str], max_new_tokens: int) -> list[str]:
        if max_new_tokens >= self.max_length:
            raise ValueError(f"max_gen_toks={max_new_tokens} leaves no room in the model's {self.max_length} positions")
        eos = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        room = self.max_length - max_new_tokens
        contexts = [self.tok_encode(request.args[0])[-room:] for request in requests]
        generator = LocalGenerator(self.model, self.tokenizer, self._progress, self._scorer)
        return generator.continuations(contexts, [*until, eos], max_new_tokens)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **_: Any) -> list[tuple[float, bool]]:
        owners = self._groups_of if len(self._groups_of) == len(requests) else list(range(len(requests)))
        options = [self._option(place, *request[1:]) for place, request in enumerate(requests)]
        groups = grouped(options, owners, self._scorer.can_share)
        found: dict[int, tuple[float, bool]] = {}
        for cluster in clusters(groups) if self._scorer.can_share else [Cluster(groups, 0)]:
            for scores in self._score_cluster(cluster):
                found.update(scores)
                self._progress(step=len(found), total=len(options), note="options scored")
        return [found[place] for place in range(len(options))]

    def _option(self, place: int, context: list[int], continuation: list[int]) -> Option:
        if not continuation or len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens cannot be scored; it needs 1 to {self.max_length}"
            )
        whole = (context + continuation)[-(self.max_length + 1) :]
        return Option(place, whole[:-1], continuation)

    def _score_cluster(self, cluster: Cluster) -> Iterator[list[Found]]:
        stem, before = cluster.stem, None
        if stem:
            self.tokens_run += stem
            ids = torch.tensor([cluster.groups[0].options[0].inputs[:stem]])
            before = self._scorer.prefix(ids, [1])
        for batch in batches(cluster, self._scorer.batch_tokens, self._scorer.cached_tokens()):
            self.tokens_run += batch.cost
            yield (
                self._score_choices(batch.groups, stem, before)
                if batch.reads_one_position
                else list(self._score_options(batch.groups, batch.shared, stem, before))
            )

    def _score_choices(self, groups: Sequence[Group], stem: int, before: Any) -> list[Found]:
        rows = [group.options[0].inputs[stem:] for group in groups]
        cache = self._scorer.spread(before, len(rows)) if stem else None
        scores = self._scorer.score_choices(rows, [[o.targets[0] for o in group.options] for group in groups], cache)
        return [
            (option.place, score)
            for group, row in zip(groups, scores, strict=True)
            for option, score in zip(group.options, row, strict=True)
        ]

    def _score_options(self, groups: Sequence[Group], shared: int, stem: int, before: Any) -> Iterator[Found]:
        cache, repeats = None, [len(group.options) for group in groups]
        if shared > stem:
            prefixes = torch.tensor([group.options[0].inputs[stem:shared] for group in groups])
            cache = self._scorer.prefix(prefixes, repeats, before)
        elif stem:
            cache = self._scorer.spread(before, sum(repeats))
        options = [option for group in groups for option in group.options]
        scores = self._scorer.score([o.inputs[shared:] for o in options], [o.targets for o in options], cache)
        for option, row in zip(options, scores, strict=True):
            yield option.place, (float(row.logprobs.double().sum()), row.greedy)


def _by_settings(requests: Sequence[Any]) -> list[tuple[dict[str, Any], list[int]]]:
    """Requests by equal generation settings, in the order of their first appearance."""
    found: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for place, request in enumerate(requests):
        found.setdefault(repr(request.args[1]), (request.args[1], []))[1].append(place)
    return list(found.values())


def _greedy(kwargs: dict[str, Any], default_length: int) -> tuple[list[str], int] | None:
    """(stops, tokens at most) of settings that mean greedy decoding and nothing else, or None."""
    from lm_eval.models.utils import normalize_gen_kwargs

    settings: dict[str, Any] = dict(normalize_gen_kwargs(kwargs, default_length))
    until, length = list(settings.pop("until", [])), settings.pop("max_gen_toks")
    if settings.pop("do_sample", False) or settings.pop("temperature", 0.0) or settings:
        return None
    return until, length
