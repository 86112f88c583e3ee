"""ADEPT: copy the blocks that matter least for text in general. arXiv 2510.10071."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.corpus import Workspace
from pipeline.data.general_text import check_bounds, general_rows
from pipeline.data.sources.documents import Text, describe
from pipeline.expansion.base import Plan
from pipeline.expansion.layout import explicit
from pipeline.expansion.methods.block import plan_stack, zeroed_writers
from pipeline.expansion.source import Source

if TYPE_CHECKING:  # a request is checked without
    from pipeline.expansion.methods.importance import Importance


@dataclass(frozen=True)
class Adept:
    """Put an identity copy directly above each of the blocks whose bypassing raises the loss on general text least.

    The first of the paper's two steps, "general-competence guided selective layer expansion". The copies start with
    zeroed residual writers, as LLaMA Pro's do, so that the expanded model is exact. The second step, rates of their own
    for the copies' tensors, is `strategy=adept` in training, which this option of conf/expand chooses.

    As the authors' code (PuppyKnightUniversity/ADEPT), but that padding does not count and every token weighs the same.

    Attributes:
        num_new_blocks: k, how many blocks are copied; 4 of 28 to 36 in the paper.
        general: a source of documents that stand for what must not be forgotten. Not what forgetting is measured on.
        window: tokens of one document, at most.
        max_tokens: of all documents together; the model runs over them once for each of its blocks, and once more.
        block_rates: ours, in the place of the second step: each copy trains (`strategy=new_blocks`) with the learning
            rate times 2(1 - I) from the first step to the last, where I is its origin's importance, measured here; see
            `Importance.shares`.
    """

    num_new_blocks: int
    general: Text
    window: int
    max_tokens: int
    block_rates: bool

    @classmethod
    def settings_for(cls, settings: Mapping[str, Any], total: int, num_blocks: int | None) -> dict[str, Any]:
        """The settings with `total` new blocks; see `Layout.settings_for`."""
        return {**settings, "num_new_blocks": total}

    def check(self, num_blocks: int) -> None:
        """Raise ValueError where these settings do not fit a model of that depth."""
        if not 1 <= self.num_new_blocks <= num_blocks:
            raise ValueError(
                f"num_new_blocks={self.num_new_blocks} must be from 1 to the model's {num_blocks} blocks; each is "
                "copied once at most"
            )
        check_bounds(self)

    def plan(self, source: Source, place: Workspace) -> Plan:
        """Measure, choose, plan; see `Expansion.plan`. What was measured is kept in the plan's notes.

        Raises:
            ValueError: the settings do not fit, the source of text is empty, or the architecture has no exact form.
        """
        self.check(source.anatomy.num_blocks)
        importance = self._measure(source, place)
        chosen = importance.least(self.num_new_blocks)
        scales = {block: 2 * (1 - i) for block, i in zip(chosen, importance.shares(chosen), strict=True)}
        plan = plan_stack(
            source,
            explicit(source.anatomy.num_blocks, [(block, 1) for block in chosen], origin="last"),
            zeroed_writers(source),
            exact=True,
            method="adept",
            settings={**vars(self), "general": describe(self.general.origin)},
            lr_scales=scales if self.block_rates else None,
        )
        return dataclasses.replace(plan, notes={**plan.notes, "importance": dataclasses.asdict(importance)})

    def _measure(self, source: Source, place: Workspace) -> Importance:
        import torch
        from accelerate import PartialState

        from pipeline.expansion.methods.importance import measure
        from pipeline.models import load, load_tokenizer
        from pipeline.models.architecture.embedding import embedding_rows

        tokenizer, num_rows = load_tokenizer(source.directory), embedding_rows(source.directory)
        rows = general_rows(self, tokenizer, num_rows, place.locate, place.listing)
        # fp32 whatever the weights are stored in: two blocks may differ by less than bf16 resolves.
        model = load(source.directory, dtype=torch.float32).to(PartialState().device)
        blocks = list(model.get_submodule(source.anatomy.prefix.removesuffix(".")))
        return measure(model, blocks, rows, place.progress)
