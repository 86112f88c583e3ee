"""What one room writes and another reads, typed once: expansion maps, items, diagnoses and training curves."""
