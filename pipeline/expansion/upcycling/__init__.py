"""Sparse upcycling: the FFNs of a dense model become experts. arXiv 2212.05055."""
