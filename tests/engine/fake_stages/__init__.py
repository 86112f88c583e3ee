"""Stages without tensors, for the engine's tests."""
