"""LLaMA Pro (arXiv 2401.02415): grow a pretrained model by identity blocks, train only those, measure what was kept."""
