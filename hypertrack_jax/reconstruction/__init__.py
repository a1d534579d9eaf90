"""Hits in, tracks out."""
