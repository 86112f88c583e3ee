"""All runs of an outputs folder on one page: `python -m pipeline.runs`."""
