"""From the config's lineage of named models to a graph of nodes. Knows stages by their declarations, and no tensors."""
