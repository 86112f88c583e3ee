"""Numbers as readers see them, in tables."""
