"""The processes that run stages: start, signals, supervision, and what a stage is given."""
