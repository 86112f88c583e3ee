"""Loading and writing of models: `load(path)` is the only loader, `safetensors_io` the only writer."""

from pipeline.models.load import load, load_tokenizer

__all__ = ["load", "load_tokenizer"]
