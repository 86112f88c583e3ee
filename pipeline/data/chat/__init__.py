"""Conversations: read out of rows, rendered by a chat template, encoded with a mask of what is learned."""
