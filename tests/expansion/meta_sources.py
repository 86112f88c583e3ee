"""Models of any size as an expansion sees them, without weights: for plans at the sizes of papers."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.expansion.architecture_cache import Architecture
from pipeline.expansion.source import Source, find_blocks
from pipeline.models.files.tensor_file import ITEM_BITS, Stored
from pipeline.records.expansion import ExpansionMap

LLAMA_3_1_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3_2_1B = LLAMA_3_1_8B | {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
    "tie_word_embeddings": True,
}  # fmt: skip


def meta_source(config: dict, dtype: str = "BF16") -> Source:
    """A saved model of this config.json whose tensors are named and shaped, and lie nowhere."""
    anatomy = Architecture(config)
    named = dict(anatomy.structure.model.named_parameters())  # a tied one once, as save_pretrained writes it
    nowhere = Path("nowhere.safetensors")
    tensors = {
        name: Stored(nowhere, dtype, tuple(p.shape), 0, p.numel() * ITEM_BITS[dtype] // 8, name)
        for name, p in named.items()
    }
    blocks = find_blocks(tensors, anatomy.num_blocks, anatomy)
    return Source(Path("nowhere"), tensors, config, ExpansionMap(), anatomy, blocks)


def num_parameters(plan, source: Source) -> int:
    """Of the model that a plan writes, by the shapes of its recipes."""
    shapes = (r.shape or source.tensors[r.source].shape for r in plan.recipes.values())
    return sum(map(math.prod, shapes))
