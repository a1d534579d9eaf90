"""The neural networks, in Flax linen."""
