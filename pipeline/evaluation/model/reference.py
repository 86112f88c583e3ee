"""The second model of a benchmark that sets one model against another, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_reference(directory: Path, model: Any, tokenizer: Any) -> Any:
    """The model in `directory`, in fp32 beside `model`.

    Raises:
        ValueError: its vocabulary is not that of `tokenizer`, or its logits are more or fewer than those of `model`.
    """
    import torch

    from pipeline.models import load, load_tokenizer

    if load_tokenizer(directory).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the model and the one in {directory} have different vocabularies, so their tokens cannot be compared; "
            "leave this benchmark out"
        )
    reference = load(directory, dtype=torch.float32).to(model.get_input_embeddings().weight.device)
    own, other = (one.config.get_text_config().vocab_size for one in (model, reference))
    if own != other:
        raise ValueError(
            f"the model has {own} logits and the one in {directory} {other}, so their distributions cannot be "
            "compared; give both embeddings of one size, or leave this benchmark out"
        )
    return reference
