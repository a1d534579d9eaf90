"""Measurements of the method itself: what they compute, write and draw."""
