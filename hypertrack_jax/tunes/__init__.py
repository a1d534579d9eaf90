"""What can be tuned, as data."""
