"""Text from a model: decoding, generation, replies."""
