"""Text and conversations: from files, packages and hubs to packed rows of tokens."""
