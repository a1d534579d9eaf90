"""Candidate edges to padded graphs of fixed shape."""
