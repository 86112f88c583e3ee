"""What a config and its weights tell of a model, and modules that transformers lacks."""
