"""What tracking a run costs, told before it runs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.training.cost.flops import Cost
from pipeline.training.tracking.track import DOMAIN, DRIFT, Track


@dataclass(frozen=True)
class TrackingCost:
    """At most: every text one document as long as it may be.

    Attributes:
        times: that the model is measured; None where the run's length is not known yet.
        pass_flops: of measuring once, over all processes; the base computes as much once more.
        logits_bytes: of the base, over all processes.
        kept_bytes: of one step's weights on the disk, with `keep_best`; two steps are kept, three while one is written.
    """

    times: int | None
    pass_flops: float
    logits_bytes: int
    kept_bytes: int

    @property
    def flops(self) -> float | None:
        """Of the whole run, the base's included."""
        return None if self.times is None else self.pass_flops * (self.times + 1)


def tracking_cost(
    track: Track, cost: Cost, seq_len: int, num_steps: int | None, num_trainable: int, vocab: int
) -> TrackingCost:
    """The cost of tracking a run of `num_steps` steps; `cost` is that of its training step."""
    sizes = {DOMAIN: (track.domain_tokens, track.document_tokens), DRIFT: (track.drift_tokens, track.drift_tokens)}
    return TrackingCost(
        times=None if num_steps is None else len(track.steps(num_steps)),
        pass_flops=sum(
            _forward(cost, tokens, min(each, seq_len)) for tokens, each in (sizes[one] for one in track.measures)
        ),
        logits_bytes=4 * vocab * track.drift_tokens if DRIFT in track.measures else 0,
        kept_bytes=4 * num_trainable if track.keep_best else 0,
    )


def _forward(cost: Cost, tokens: int, each: int) -> float:
    """FLOPs of a forward pass over documents of `each` tokens, every token labelled."""
    pairs = sum(window.forward * sum(map(window.pairs, range(each))) for window in cost.windows)
    return tokens * (cost.forward + cost.head_forward) + tokens / each * (pairs + cost.row_forward)
