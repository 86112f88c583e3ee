"""How far a model moved from its base: KL(base || model) per token, over the whole vocabulary.

On what the base writes itself it needs no data of the base; on inputs of the new domain it predicts forgetting best
(Shenfeld et al. 2025, arXiv 2509.04259). It says how far the distribution moved, not which facts were lost.

Shapes: N scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pipeline.data.tokens.vocabulary import check_rows
from pipeline.evaluation.base import Item, Outcome, Workspace, content_hash, num_rows
from pipeline.evaluation.model.reference import load_reference
from pipeline.evaluation.text.base_samples import CHAT, Sample, read_samples
from pipeline.evaluation.text.passages import Passage
from pipeline.evaluation.text.perplexity import HeldOutText
from pipeline.records.items import KL_NATS

if TYPE_CHECKING:
    import torch

    from pipeline.evaluation.model.scoring import TokenScorer

DOMAIN = "domain"
NO_CHAT = "Without chat samples: the base has no chat template, or the settings name no prompts."
NO_DOMAIN = "Without inputs of the new domain: this run prepares no data of it."


class _Text(NamedTuple):
    """What both models read, its category, and what people read of it: what was asked and what was answered."""

    passage: Passage
    kind: str
    asked: str
    answer: str


@dataclass(frozen=True)
class Drift(HeldOutText):
    """KL(base || model) in nats per token, on samples of the base and on held-out documents of the new domain.

    Both models read the same ids in fp32, and their whole distributions are compared at every scored token. A model
    that computes the same logits has a drift of exactly 0. Categories: the kinds of samples, and `domain`.

    Attributes:
        documents, ...: of the domain's documents, as for HeldOutText. Samples are read whole, whatever `window` is.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference", "samples")

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """One item per sample or document: numerator the summed divergence, denominator its scored tokens.

        Raises:
            ValueError: there is no second model or no samples, the two have different vocabularies, or a token has no
                row.
        """
        if inputs.reference is None or inputs.samples is None:
            raise ValueError(
                "drift is measured against a second model on what that one wrote; give the benchmark `reference`, such "
                "as base, and `samples`"
            )
        samples, has_domain = read_samples(inputs.samples), self.documents is not None or inputs.data is not None
        documents = self.passages(tokenizer, num_rows(model), inputs) if has_domain else []
        texts = [_text_of(sample) for sample in samples] + [_Text(one, DOMAIN, one.text, "") for one in documents]
        for text in texts:
            check_rows(text.passage.tokens, num_rows(model), f"item {text.passage.id!r}", tokenizer)
        sums = self._sums(model, load_reference(inputs.reference, model, tokenizer), texts, inputs)
        lacks_chat = not any(text.kind == CHAT for text in texts)
        notes = [note for note, holds in ((NO_CHAT, lacks_chat), (NO_DOMAIN, not has_domain)) if holds]
        return Outcome(KL_NATS, False, tuple(map(_item, texts, sums)), tuple(notes))

    def _sums(self, model: Any, base: Any, texts: Sequence[_Text], inputs: Workspace) -> list[float]:
        """The summed divergence of every text."""
        from pipeline.evaluation.model.scoring import TokenScorer, batches, num_scored
        from pipeline.evaluation.text.windows import windows

        scorers = TokenScorer(base), TokenScorer(model)
        cuts = [
            (i, *cut)
            for i, (passage, kind, *_) in enumerate(texts)
            for cut in windows(passage.tokens, passage.scored, self.window if kind == DOMAIN else len(passage.tokens))
        ]
        parts: list[list[float]] = [[] for _ in texts]
        done, budget = 0, min(scorer.batch_tokens for scorer in scorers)
        for batch in batches(cuts, [len(tokens) for _, tokens, _ in cuts], budget):
            rows, targets = [cut[1] for cut in batch], [cut[2] for cut in batch]
            found = divergences(*scorers, rows, targets).split(num_scored(targets))
            for (i, *_), values in zip(batch, found, strict=True):
                parts[i].append(float(values.sum()))
            done += len(batch)
            inputs.progress(step=done, total=len(cuts), note="windows compared")
        return [math.fsum(found) for found in parts]


def divergences(
    base: TokenScorer, model: TokenScorer, rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> torch.Tensor:
    """KL(base || model) in nats at each scored position of the rows, float64[N]; arguments as for `TokenScorer.score`.

    The logits of a few hundred tokens stand in memory at once.
    """
    import torch

    def pairs() -> Iterator[torch.Tensor]:
        for (base_NV, _), (own_NV, _) in zip(base.logits(rows, targets), model.logits(rows, targets), strict=True):
            base_NV, own_NV = base_NV.log_softmax(-1), own_NV.log_softmax(-1)
            yield (base_NV.exp() * (base_NV - own_NV)).sum(-1, dtype=torch.float64)

    with torch.inference_mode():
        return torch.cat(list(pairs())).cpu()


def passage_of(sample: Sample) -> Passage:
    """A sample, of which what the base wrote is scored."""
    ids, name = [*sample.prompt, *sample.tokens], content_hash(sample.prompt, sample.tokens)
    scored = [False] * len(sample.prompt) + [True] * len(sample.tokens)
    return Passage(sample.id, name, ids, scored, len(sample.text.encode()), sample.text)


def _text_of(sample: Sample) -> _Text:
    return _Text(passage_of(sample), sample.kind, sample.asked, sample.text)


def _item(text: _Text, total: float) -> Item:
    passage = text.passage
    count = float(sum(passage.scored))
    return Item(passage.id, passage.hash, total, count, text.kind, prompt=text.asked, answer=text.answer)
