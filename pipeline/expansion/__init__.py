"""Growing a model: a plan (data), then a streaming write, then a proof. One file per method."""
