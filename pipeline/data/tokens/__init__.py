"""Text as token ids, and token ids on disk."""
