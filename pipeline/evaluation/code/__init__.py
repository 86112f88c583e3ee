"""Programs that a model writes, run in the sandbox."""
