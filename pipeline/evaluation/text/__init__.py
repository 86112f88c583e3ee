"""What a model makes of given text: bits per byte, positions, token shift, updates of blocks."""
