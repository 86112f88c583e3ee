"""Mixing models of one architecture into one, tensor by tensor."""
