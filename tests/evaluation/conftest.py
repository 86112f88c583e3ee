"""Tiny random models and a byte tokenizer; a source of rows in a directory."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from pipeline.data.sources.documents import LocalFiles
from pipeline.evaluation.base import Workspace
from pipeline.models.architecture.tiny import byte_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDTHS = {"vocab_size": 300, "intermediate_size": 48, "max_position_embeddings": 2048, "initializer_range": 0.3}


@pytest.fixture(scope="session")
def tiny():
    """Make a seeded fp32 model of any family."""

    def make(model_type="llama", **changes):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **WIDTHS, **changes})
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    return make


@pytest.fixture(scope="session")
def llama(tiny):
    return tiny()


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def local(tmp_path):
    """Write rows as JSON lines and give the source that reads them."""

    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return LocalFiles({"kind": "local", "path": str(path)})

    return write


@pytest.fixture
def inputs():
    return Workspace(lambda source: Path(source["path"]), lambda source: [Path(source["path"]).name])
