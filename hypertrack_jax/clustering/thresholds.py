"""Device side: thresholds on membership probabilities (algorithm section 5, step 4)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

FIXED = 0.5
"""The published threshold."""
FISHER_TOP = 30
"""The largest probabilities of a micrograph, among which Fisher's threshold is sought."""

EQUAL = 1e-5
"""Probabilities that differ by less are the same."""


def fisher_threshold(
    probability: Float[Array, "cluster slot"], mask: Bool[Array, "cluster slot"]
) -> Float[Array, " cluster"]:
    """The threshold that best parts the probabilities of each micrograph into two classes.

    Otsu (IEEE Trans. SMC 9 (1979) 62): the cut with the largest variance between the classes, among
    the cuts of the sorted top 30; the threshold lies half-way between the two values beside
    the cut. A micrograph of one hit, or of equal probabilities, cannot be parted: all are taken.
    """
    lowest = jnp.asarray(-1, probability.dtype)
    top = -jnp.sort(-jnp.where(mask, probability, lowest), axis=1)[:, :FISHER_TOP]
    is_real = top >= 0
    value = jnp.where(is_real, top, 0)
    number = jnp.cumsum(is_real, axis=1).astype(value.dtype)
    total, count = value.sum(axis=1, keepdims=True), number[:, -1:]
    upper = jnp.cumsum(value, axis=1)
    num_lower = count - number
    difference = upper / jnp.maximum(number, 1) - (total - upper) / jnp.maximum(num_lower, 1)
    between = jnp.where(is_real & (num_lower > 0), number * num_lower * difference**2, -1)
    cut = jnp.argmax(between, axis=1)
    below = jnp.minimum(cut + 1, top.shape[1] - 1)
    rows = jnp.arange(len(top))
    halfway = (value[rows, cut] + value[rows, below]) / 2
    # Rounding makes a difference between classes of equal values.
    is_parted = between[rows, cut] > EQUAL**2 * count[:, 0] ** 2
    return jnp.where(is_parted, halfway, 0)
