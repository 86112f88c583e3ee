"""The paper's tables, and a run's numbers beside them."""
