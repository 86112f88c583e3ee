"""Where a number that a reader sees stands in a report's data."""
