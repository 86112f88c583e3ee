"""Intervals, tests and what an experiment of this size can show."""
