"""Names, plain data, fingerprints, directories and processes. Knows no tensors, no configs and no method."""
