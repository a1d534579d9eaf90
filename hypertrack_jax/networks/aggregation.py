"""Device side: how the messages to a hit become one, its aggregate (algorithm section 3).

The mean, as published, the sum and the maximum can be taken block by block. `softmax`,
`multi-aggregation` and `set-transformer` look at all messages at once, so they hold arrays over
edges and features in inference, too. A hit without messages has an aggregate of zeros.
"""

import math
from functools import partial
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from hypertrack_jax.graph.segment import (
    add_to_segments,
    raise_segments,
    segment_max,
    segment_sum,
)
from hypertrack_jax.networks.attention import AttentionBlock, attention
from hypertrack_jax.networks.edge_inputs import EdgeInputs, masked
from hypertrack_jax.networks.kernels import rows_at, tall_matmul, wide_dtype
from hypertrack_jax.networks.mlp import Affine, Linear

NUM_INDUCING = 4
"""Vectors by which the messages to a hit learn of each other in `set-transformer`."""
SUMMED = ("mean", "sum")
"""Aggregations by sums that are taken before the norm of the messages is known."""
EPSILON = 1e-5
"""Added to a variance, whose root else had no finite gradient at 0."""


def no_messages(
    kind: str, num_hits: int, features: int, dtype: DTypeLike
) -> Float[Array, "hit feat"]:
    """The start of `with_messages`, in the type in which sums of `dtype` are accumulated."""
    lowest = -jnp.inf if kind == "max" else 0
    return jnp.full((num_hits, features), lowest, wide_dtype(dtype))


def with_messages(
    kind: str,
    so_far: Float[Array, "hit feat"],
    hidden: Float[Array, "edge feat"],
    norm: Affine,
    edges: EdgeInputs,
) -> Float[Array, "hit feat"]:
    """`so_far` with the messages norm(hidden) of some more edges; `aggregate` finishes it."""
    if kind != "max":
        return add_to_segments(so_far, masked(hidden, edges), edges.receivers)
    message = norm(hidden).astype(so_far.dtype)
    real = jnp.where(edges.mask[:, None], message, -jnp.inf)
    return raise_segments(so_far, real, edges.receivers)


def all_messages(
    kind: str, hidden: Float[Array, "edge feat"], norm: Affine, edges: EdgeInputs, num_hits: int
) -> Float[Array, "hit feat"]:
    """`with_messages` of all edges at once, with a gradient."""
    if kind == "max":
        return highest(norm(hidden), edges, num_hits)
    return segment_sum(masked(hidden, edges), edges.receivers, num_hits)


def aggregate(
    kind: str,
    total: Float[Array, "hit feat"],
    norm: Affine,
    degree: Float[Array, " hit"],
    dtype: DTypeLike,
) -> Float[Array, "hit feat"]:
    """The aggregate of all messages that were taken in: `mean`, `sum` or `max`.

    The norm commutes with a mean, so it is applied to the sums over hits and not to edges.
    """
    column = degree[:, None]
    if kind == "max":
        value = total.astype(dtype)
    else:
        value = norm((total / jnp.maximum(column, 1)).astype(dtype))
    if kind == "sum":
        value = value * column.astype(dtype)
    return jnp.where(column > 0, value, 0)


class SoftmaxAggregation(nn.Module):
    """Mean of the messages, weighted in each channel by their softmax: a smooth maximum."""

    features: int

    def __call__(
        self,
        message: Float[Array, "edge feat"],
        edges: EdgeInputs,
        degree: Float[Array, " hit"],
    ) -> Float[Array, "hit feat"]:
        """One vector for each hit."""
        return softmax_mean(message, message[..., None], edges, len(degree))[..., 0]


class MultiAggregation(nn.Module):
    """Sum, mean, standard deviation, maximum and minimum, of which attention makes one vector.

    Each has a Linear of its own; then the five of a hit attend to each other, by one head, and
    their mean is taken.
    """

    features: int

    def setup(self):
        """Declares the projections."""
        self.projections = [Linear(self.features, self.features) for _ in range(5)]
        self.query, self.key, self.value, self.output = (
            Linear(self.features, self.features) for _ in range(4)
        )

    def __call__(
        self,
        message: Float[Array, "edge feat"],
        edges: EdgeInputs,
        degree: Float[Array, " hit"],
    ) -> Float[Array, "hit feat"]:
        """One vector for each hit."""
        parts = [part.astype(message.dtype) for part in five_aggregates(message, edges, degree)]
        projected = [layer(part) for layer, part in zip(self.projections, parts, strict=True)]
        x = jnp.stack(projected, axis=1)
        everything = jnp.ones(x.shape[:2], bool)
        seen = attention(self.query(x), self.key(x), self.value(x), everything, num_heads=1)
        return jnp.where(degree[:, None] > 0, self.output(seen).mean(axis=1), 0)


class SetTransformerAggregation(nn.Module):
    """A set transformer over the messages to a hit, linear in their number (arXiv:1810.00825).

    An induced block (eq. 9 and 10) lets the messages see each other, and a learnt seed pools them
    (eq. 11). Deviation: the published option has full self-attention in place of the first, which
    costs the square of the degree, and another block after the pooling of what is then one vector;
    that is left to the layer's update MLP. Its blocks have LayerNorm, as eq. 6 says and as those of
    the clusterer have, and not the BatchNorm of the layers around it: what the messages to one hit
    become then depends on them alone, and not on how many hits an event has.
    """

    features: int

    def setup(self):
        """Declares the points that attend and the blocks."""
        init = nn.initializers.normal(1.0)
        self.inducing = self.param("inducing", init, (NUM_INDUCING, self.features))
        self.seed = self.param("seed", init, (1, self.features))
        self.inward, self.outward, self.pooling = (
            AttentionBlock(self.features, num_heads=1) for _ in range(3)
        )

    def __call__(
        self,
        message: Float[Array, "edge feat"],
        edges: EdgeInputs,
        degree: Float[Array, " hit"],
    ) -> Float[Array, "hit feat"]:
        """One vector for each hit."""
        induced = _attend(self.inward, self.inducing, message, edges, len(degree))
        key, value = (rows_at(x, edges.receivers) for x in self.outward.keys_and_values(induced))
        everything = jnp.ones(key.shape[:2], bool)
        message = self.outward.given(message[:, None], key, value, everything)[:, 0]
        pooled = _attend(self.pooling, self.seed, message, edges, len(degree))[:, 0]
        return jnp.where(degree[:, None] > 0, pooled, 0)


OF_ALL_AT_ONCE = {
    "softmax": SoftmaxAggregation,
    "multi-aggregation": MultiAggregation,
    "set-transformer": SetTransformerAggregation,
}
"""Aggregations that cannot be taken block by block."""


def softmax_mean(
    score: Float[Array, "edge column"],
    value: Float[Array, "edge #column feat"],
    edges: EdgeInputs,
    num_hits: int,
) -> Float[Array, "hit column feat"]:
    """Mean of the values at each hit, weighted by the softmax over its edges of their scores."""
    wide, mask = wide_dtype(score.dtype), edges.mask[:, None]
    real = jnp.where(mask, score.astype(wide), jnp.finfo(wide).min)
    # The peak only guards against overflow; its gradient cancels exactly.
    peak = jax.lax.stop_gradient(segment_max(real, edges.receivers, num_hits))
    weight = jnp.where(mask, jnp.exp(real - peak[edges.receivers]), 0)
    total = segment_sum(weight, edges.receivers, num_hits)
    # Padding is set to 0 first, because 0 times infinity is not 0.
    real = jnp.where(mask[..., None], value.astype(wide), 0)
    weighted = segment_sum(weight[..., None] * real, edges.receivers, num_hits)
    return (weighted / jnp.where(total > 0, total, 1)[..., None]).astype(score.dtype)


def five_aggregates(
    message: Float[Array, "edge feat"], edges: EdgeInputs, degree: Float[Array, " hit"]
) -> list[Float[Array, "hit feat"]]:
    """Sum, mean, standard deviation, maximum and minimum of the messages to each hit."""
    num_hits, column = len(degree), jnp.maximum(degree, 1)[:, None]
    real = masked(message, edges)
    total = segment_sum(real, edges.receivers, num_hits)
    mean = total / column
    centred = masked(real - rows_at(mean, edges.receivers), edges)
    variance = segment_sum(centred**2, edges.receivers, num_hits) / column
    extrema = [
        jnp.where(degree[:, None] > 0, highest(sign * message, edges, num_hits), 0) * sign
        for sign in (1, -1)
    ]
    return [total, mean, jnp.sqrt(variance + EPSILON), *extrema]


def highest(
    message: Float[Array, "edge feat"], edges: EdgeInputs, num_hits: int
) -> Float[Array, "hit feat"]:
    """The largest message to each hit in each channel; -inf without messages."""
    wide = message.astype(wide_dtype(message.dtype))
    real = jnp.where(edges.mask[:, None], wide, -jnp.inf)
    return cast(jax.Array, _segment_max(real, edges.receivers, num_hits))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _segment_max(message, receivers, num_hits: int):
    return segment_max(message, receivers, num_hits)


def _max_forward(message, receivers, num_hits):
    largest = segment_max(message, receivers, num_hits)
    return largest, (message, receivers, largest)


def _max_backward(num_hits, residuals, gradient):
    """Shares the gradient among the messages that equal the largest, up to rounding.

    XLA may compute a message twice and round it in two ways, so that none would equal it exactly.
    """
    message, receivers, largest = residuals
    scale = jnp.where(jnp.isfinite(largest), jnp.abs(largest), 0).max(axis=0, keepdims=True)
    least = largest - jnp.finfo(largest.dtype).eps ** 0.75 * scale
    is_largest = (message >= least[receivers]) & jnp.isfinite(message)
    number = segment_sum(is_largest.astype(message.dtype), receivers, num_hits)
    share = gradient / jnp.maximum(number, 1)
    return jnp.where(is_largest, share[receivers], 0), None


_segment_max.defvjp(_max_forward, _max_backward)


def _attend(
    block: AttentionBlock,
    points: Float[Array, "point feat"],
    message: Float[Array, "edge feat"],
    edges: EdgeInputs,
    num_hits: int,
) -> Float[Array, "hit point feat"]:
    """MAB(points, messages to a hit) for each hit."""
    dtype = message.dtype
    key, value = block.keys_and_values(message)
    score = tall_matmul(key, block.query(points.astype(dtype)).T) / math.sqrt(points.shape[1])
    seen = softmax_mean(score, value[:, None], edges, num_hits)
    # Rounded last, so that the gradient of a point is summed over the hits in float32.
    of_hits = jnp.broadcast_to(points, (num_hits, *points.shape)).astype(dtype)
    return block.updated(of_hits, seen)
