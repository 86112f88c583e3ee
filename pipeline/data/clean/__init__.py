"""What is held out and what is left out: near-duplicates, and text of evaluation sets."""
