"""From the words that a person types to a config: short forms, choices, and answers to what cannot be run."""
