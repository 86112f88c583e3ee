"""Weights and tokenizers on disk."""
