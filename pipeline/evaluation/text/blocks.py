"""What each new block does: the size of its update to the stream, and what leaving it out costs on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

from pipeline.evaluation.base import Item, Outcome, Workspace, num_rows, score
from pipeline.evaluation.text.perplexity import HeldOutText
from pipeline.records.diagnosis import DiagnosedBlock, Diagnosis, Removal
from pipeline.records.expansion import EXPANSION_FILE, NewBlock, read_expansion


@dataclass(frozen=True)
class BlockDiagnostics(HeldOutText):
    """Diagnose the blocks that an expansion added, as recorded in the model's `expansion.json`.

    Measured are the relative update |block(x) - x| / |x| of every block, old and new, as a mean over tokens; the loss
    without each new block, its output replaced by its input; the loss without all of them, which is the base's where
    nothing else was trained; and the loss without all candidates together. A candidate for dropping is a new block
    whose removal does not raise the loss outside its confidence interval. Costs add up in no simple way (two blocks
    may stand in for each other), so the candidates' joint cost is measured, not summed.

    A full pass per new block, and at most four more. A block whose output has its input's bits everywhere is not
    scored again: leaving it out changes nothing. A model without new blocks gives its own loss and updates alone.

    Attributes:
        confidence: of the intervals, between 0 and 1.
        others: as for HeldOutText.
    """

    looks_inside: ClassVar[bool] = True
    confidence: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence} is not between 0 and 1; 0.95 is usual")

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """Items are those of the whole model: numerator bits, denominator UTF-8 bytes of a document."""
        from pipeline.evaluation.model.scoring import TokenScorer
        from pipeline.evaluation.text.updates import measure_updates
        from pipeline.evaluation.text.windows import score_passages, windows
        from pipeline.models.architecture.blocks import bypassed, decoder_blocks

        blocks = decoder_blocks(model)
        new = recorded_blocks(model, len(blocks))
        passages = self.passages(tokenizer, num_rows(model), inputs)
        rows = [tokens for p in passages for tokens, _ in windows(p.tokens, p.scored, self.window)]
        inputs.progress(note="sizes of updates")
        updates = measure_updates(model, blocks, rows, TokenScorer(model).batch_tokens)

        def score_without(positions: frozenset[int], progress: Callable[..., None]) -> Outcome:
            with bypassed(blocks, positions):
                return score_passages(model, passages, self.window, replace(inputs, progress=progress))

        identities = frozenset(position for position, update in enumerate(updates) if update.is_identity)
        passes = _Passes(score_without, identities, len(new) + 3, inputs.progress)
        whole = passes.without(())
        found = self._leave_out(whole, passes, new, identities)
        diagnosis = Diagnosis(self.confidence, tuple(update.relative for update in updates), *found)
        return replace(whole, diagnosis=diagnosis)

    def _leave_out(
        self, whole: Outcome, passes: _Passes, new: Sequence[NewBlock], identities: Collection[int]
    ) -> tuple[tuple[DiagnosedBlock, ...], Removal | None, Removal | None]:
        """Each new block alone, all of them, and the candidates together."""

        def removal(positions: Iterable[int]) -> Removal:
            return compare(whole, passes.without(positions), tuple(positions), self.confidence)

        single = [removal((block.position,)) for block in new]
        blocks = tuple(
            DiagnosedBlock(
                **vars(block), is_identity=block.position in identities, without=one, is_candidate=one.is_harmless
            )
            for block, one in zip(new, single, strict=True)
        )
        positions = [block.position for block in blocks]
        candidates = [block.position for block in blocks if block.is_candidate]
        return blocks, removal(positions) if new else None, removal(candidates) if candidates else None


class _Passes:
    """The model's loss without sets of blocks, each set scored once.

    Args:
        score: scores the model without blocks at these positions, reporting progress to the second argument.
        identities: positions of blocks that change nothing, which need not be left out.
        at_most: sets that will be asked for at most; for progress.
    """

    def __init__(
        self,
        score: Callable[[frozenset[int], Callable[..., None]], Outcome],
        identities: frozenset[int],
        at_most: int,
        progress: Callable[..., None],
    ) -> None:
        self._score, self._identities, self._at_most, self._progress = score, identities, at_most, progress
        self._done: dict[frozenset[int], Outcome] = {}

    def without(self, positions: Iterable[int]) -> Outcome:
        effective = frozenset(positions) - self._identities
        if effective not in self._done:
            self._done[effective] = self._score(effective, self._reporter(effective))
        return self._done[effective]

    def _reporter(self, positions: frozenset[int]) -> Callable[..., None]:
        begun = len(self._done)
        blocks = f"without block {', '.join(map(str, sorted(positions)))}" if positions else "whole model"

        def report(step: int, total: int, **_: Any) -> None:
            self._progress(step=begun * total + step, total=self._at_most * total, note=f"tokens scored, {blocks}")

        return report


def compare(whole: Outcome, without: Outcome, positions: tuple[int, ...], confidence: float) -> Removal:
    """The paired difference of two outcomes on the same items, in bits per byte, with its linearised standard error."""
    pairs = zip(whole.items, without.items, strict=True)
    value, stderr, _ = score([replace(a, numerator=b.numerator - a.numerator) for a, b in pairs])
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * stderr
    return Removal(positions, value, stderr, value - reach, value + reach, _numerators(without.items))


def recorded_blocks(model: Any, num_blocks: int) -> list[NewBlock]:
    """The new blocks of the directory that a model was loaded from, by position; none if nothing was added.

    Raises:
        ValueError: the model does not say where it came from, or the map does not fit it.
    """
    directory = Path(model.name_or_path)
    if not model.name_or_path or not (directory / "config.json").is_file():
        raise ValueError(
            f"the model was loaded from {model.name_or_path!r}, which is not a model directory; its {EXPANSION_FILE} "
            "says which blocks are new, so load it from the directory that the expansion wrote"
        )
    blocks = sorted(read_expansion(directory).blocks, key=lambda block: block.position)
    if any(not 0 <= block.position < num_blocks for block in blocks):
        raise ValueError(
            f"{directory / EXPANSION_FILE} names block {blocks[-1].position}, but the model has {num_blocks} "
            "blocks; it belongs to another model"
        )
    return blocks


def _numerators(items: Iterable[Item]) -> tuple[float, ...]:
    return tuple(item.numerator for item in items)
