"""Scores, reports and figures."""
