"""What benchmarks of replies share: the chat template, the length of a reply, and who speaks by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.data.chat.template import TemplateSettings, read_template
from pipeline.evaluation.base import Outcome, Workspace
from pipeline.evaluation.model.replies import Speaker, require_template


@dataclass(frozen=True, kw_only=True)
class ChatBenchmark:
    """A benchmark of replies; `measure` is its own.

    Attributes:
        template: a chat template in place of the model's own, or null; as for `ChatData`, as are date and
            template_options.
        max_new_tokens: of one reply.
        max_items: questions or problems, the first in the order of their content hashes; null for all.
    """

    needs_chat: ClassVar[bool] = True

    template: str | Mapping[str, Any] | None
    max_new_tokens: int
    max_items: int | None
    date: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TemplateSettings(None, self.date, self.template_options)
        if self.max_new_tokens < 1 or (self.max_items is not None and self.max_items < 1):
            raise ValueError("max_new_tokens and max_items must be at least 1 (max_items may be null)")

    def prepare(self, model: Path, inputs: Workspace) -> None:
        """Refuse a missing chat template before the model is loaded. Raises ValueError."""
        from pipeline.models import load_tokenizer

        require_template(load_tokenizer(model), self.template_settings(inputs))

    def run(self, model: Any, tokenizer: Any, inputs: Workspace) -> Outcome:
        """`measure` with the model in this process."""
        from pipeline.evaluation.model.generation import LocalGenerator  # torch comes with it

        return self.measure(LocalGenerator(model, tokenizer), inputs)

    def measure(self, speaker: Speaker, inputs: Workspace) -> Outcome:
        """The outcome with replies from anything that speaks."""
        raise NotImplementedError

    def template_settings(self, inputs: Workspace) -> TemplateSettings:
        """How conversations are rendered. Raises ValueError for a template that cannot be read."""
        return TemplateSettings(read_template(self.template, inputs.locate), self.date, self.template_options)
