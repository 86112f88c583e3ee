"""Domain packs: the trained new blocks alone."""
