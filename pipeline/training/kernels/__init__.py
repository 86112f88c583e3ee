"""How a forward and a backward pass are computed: attention, products, loss, recomputation."""
