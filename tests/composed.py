"""Composed models of tests: two saved models, joined by bridges after every second block."""

from __future__ import annotations

from pipeline.expansion.methods.calm import Calm
from pipeline.expansion.source import read_source
from pipeline.expansion.writer import write_expansion

SMALLER = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}


def compose(anchor, augmenting, target):
    source = read_source(anchor, None, {"augmenting": augmenting})
    write_expansion(Calm(every=2, seed=0).plan(source), source, target)
    return target
