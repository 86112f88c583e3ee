"""Shared pieces of the tests: tiny models made once, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.children import give_children_defaults

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def pytest_configure(config):
    """In the process that runs tests: xdist's workers are started by one that keeps what it ignores."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        give_children_defaults()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """A function that saves a tiny random model of the given config and dtype, once per configuration."""
    from pipeline.models.architecture.tiny import save_random

    made: dict[str, Path] = {}

    def make(dtype: str = "float32", seed: int = 0, **config) -> Path:
        key = repr((dtype, seed, sorted(config.items(), key=repr)))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model")
            save_random(made[key], {**TINY_LLAMA, **config}, dtype, seed=seed)
        return made[key]

    return make
