"""Several processes: sharding, and checkpoints that any number of them reads."""
