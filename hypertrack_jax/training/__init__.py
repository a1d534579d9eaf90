"""Losses, optimiser, checkpoints and the training loop."""
