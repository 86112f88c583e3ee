"""Tasks of lm-evaluation-harness and their like: options ranked by log-likelihood."""
