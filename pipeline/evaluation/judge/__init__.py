"""Conversations and episodes that are judged: MT-Bench and MINT."""
