"""Measures along a run: what is measured, on which rows, and what follows from it."""
