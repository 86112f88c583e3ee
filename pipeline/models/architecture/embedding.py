"""How many token ids a model takes, read off its directory without loading weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.models.directory import read_config
from pipeline.models.files.safetensors_io import read_index

_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|token_embd|embeddings)\.weight$"
)


def embedding_rows(directory: Path) -> int:
    """Rows of the token embedding: those of the stored tensor, and `vocab_size` of config.json says the same.

    Raises:
        ValueError: the two differ, or neither tells; or the directory is incomplete.
    """
    config = read_config(directory)
    stated = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    tables = {name: stored.shape[0] for name, stored in read_index(directory).items() if _EMBEDDING.search(name)}
    name = min(tables, key=lambda name: (len(name), name), default=None)  # a longer name is that of a part
    if name is None:
        return int(stated or _by_default(directory))
    if stated is not None and tables[name] != stated:
        raise ValueError(
            f"{directory}: {name} has {tables[name]} rows, but config.json says vocab_size={stated}; correct the "
            "one that is wrong"
        )
    return tables[name]


def _by_default(directory: Path) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True).get_text_config()
    if not (size := getattr(config, "vocab_size", None)):
        raise ValueError(f"{directory}/config.json says no vocab_size; add it")
    return size
