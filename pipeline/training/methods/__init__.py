"""What trains, and how it is updated."""
