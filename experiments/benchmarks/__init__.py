"""Time and memory of our work, beside other programs for the same work."""
