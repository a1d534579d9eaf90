"""Edge scores to clusters of hits."""
