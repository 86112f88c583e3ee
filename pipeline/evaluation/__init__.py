"""Measuring a model: bits per byte of held-out text and chat, and the tasks of lm-evaluation-harness."""
