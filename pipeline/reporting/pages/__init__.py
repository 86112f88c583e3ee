"""The pages of a report, and what they say in sentences."""
