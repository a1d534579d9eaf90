"""Device side: SuperEdgeConv, the message-passing layer of the GNN (algorithm section 3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax.graph.segment import add_to_segments, segment_sum
from hypertrack_jax.networks.mlp import MLP, NormedLinear, silu, tall_matmul, wide_dtype

WIDE = 16
"""Width from which distances are computed from scalar products."""
EDGE_BLOCK = 8192
"""Edges handled together in inference, so that what is computed of them stays in cache."""


class EdgeInputs(NamedTuple):
    """What every layer needs of the edges; sorted by receiver."""

    senders: Int[Array, " edge"]
    receivers: Int[Array, " edge"]
    mask: Bool[Array, " edge"]
    scalars: Float[Array, "edge scalar"]
    """Inputs that are the same in every layer: the degree attribute a_ij, then features."""


class PairLinear(NamedTuple):
    """The first Linear of the message MLP, prepared per hit as far as it can be."""

    x: Float[Array, "hit in_feat"]
    of_receiver: Float[Array, "hit feat"]
    """What a hit contributes as receiver, the bias included."""
    of_sender: Float[Array, "hit feat"]
    """What a hit contributes as sender."""
    product: Float[Array, "in_feat feat"]
    """Kernel of x_j x_i; that of x_j . x_i, their sum, is added to each of its rows."""
    scalar: Float[Array, "scalar_plus_1 feat"]
    """Kernel of |x_j - x_i| and the other scalars."""

    def __call__(self, edges: EdgeInputs) -> Float[Array, "edge feat"]:
        """The Linear's value on some edges."""
        x_i, x_j = self.x[edges.receivers], self.x[edges.senders]
        pair_product = x_i * x_j
        distance = _distance(self.x, x_i, x_j, pair_product, edges)
        scalars = jnp.concatenate([distance[:, None], edges.scalars], axis=1)
        return (
            self.of_receiver[edges.receivers]
            + self.of_sender[edges.senders]
            + tall_matmul(pair_product, self.product)
            + tall_matmul(scalars, self.scalar)
        )


class SuperEdgeConv(nn.Module):
    """One layer: messages over edges, their mean per receiver, and an update of the hits.

    The first Linear of the message MLP acts on [x_i, x_j - x_i, x_j x_i, |x_j - x_i|, x_j . x_i,
    scalars]. It is evaluated in parts, W [x_i, x_j - x_i] = (W_1 - W_2) x_i + W_2 x_j, so that two
    thirds of its work is done per hit and not per edge. Neither norm of the message MLP is applied
    on edges: the first is folded into the second Linear, the second commutes with the mean.
    """

    in_features: int
    num_scalars: int
    features: int = 64
    residual: bool = True

    def setup(self):
        """Declares the message MLP and the update MLP."""
        self.edge_first = NormedLinear(3 * self.in_features + 2 + self.num_scalars, self.features)
        self.edge_second = NormedLinear(self.features, self.features)
        self.latent = MLP((self.in_features + self.features, self.features, self.features))

    def __call__(
        self,
        x: Float[Array, "hit in_feat"],
        hit_mask: Bool[Array, " hit"],
        edges: EdgeInputs,
        degree: Float[Array, " hit"],
        train: bool,
    ) -> Float[Array, "hit feat"]:
        """The hits' next latent; messages go from sender j to receiver i."""
        sum_of = self._sum_in_training if train else self._sum_in_inference
        total, norm = sum_of(self._pair_linear(x), edges)
        mean = (total / jnp.maximum(degree, 1)[:, None]).astype(x.dtype)
        message = jnp.where(degree[:, None] > 0, norm(mean), 0)
        y = self.latent(jnp.concatenate([x, message], axis=1), hit_mask, train)
        return y + x if self.residual else y

    def _pair_linear(self, x) -> PairLinear:
        c = self.in_features
        kernel = self.edge_first.kernel.astype(x.dtype)
        own, difference, product = kernel[:c], kernel[c : 2 * c], kernel[2 * c : 3 * c]
        distance_row, dot_row, scalar_rows = kernel[3 * c], kernel[3 * c + 1], kernel[3 * c + 2 :]
        return PairLinear(
            x,
            of_receiver=x @ (own - difference) + self.edge_first.bias[None, :].astype(x.dtype),
            of_sender=x @ difference,
            product=product + dot_row[None, :],
            scalar=jnp.concatenate([distance_row[None, :], scalar_rows]),
        )

    def _sum_in_training(self, linear: PairLinear, edges: EdgeInputs):
        """Sum of messages per receiver before their last norm, and that norm."""
        hidden = silu(linear(edges))
        first_norm = self.edge_first.norm.batch(hidden, edges.mask)
        hidden, second_norm = self.edge_second(hidden, edges.mask, True, first_norm)
        total = segment_sum(masked(hidden, edges), edges.receivers, len(linear.x))
        return total, second_norm

    def _sum_in_inference(self, linear: PairLinear, edges: EdgeInputs):
        """The same with running statistics, block by block: no [edge, feat] array is ever whole."""
        kernel, bias = self.edge_second.folded(self.edge_first.norm.running())
        kernel, bias = kernel.astype(linear.x.dtype), bias[None, :].astype(linear.x.dtype)

        def add_block(total, block: EdgeInputs):
            hidden = silu(silu(linear(block)) @ kernel + bias)
            return add_to_segments(total, masked(hidden, block), block.receivers), None

        total = jnp.zeros_like(linear.of_receiver, wide_dtype(linear.x.dtype))
        total, _ = jax.lax.scan(add_block, total, in_blocks(edges, len(linear.x) - 1))
        return total, self.edge_second.norm.running()


def in_blocks(edges: EdgeInputs, padding_hit: int) -> EdgeInputs:
    """The edges as [block, EDGE_BLOCK, ...], filled up with padding edges at `padding_hit`."""
    num_edges = len(edges.mask)
    size = min(EDGE_BLOCK, max(num_edges, 1))
    num_missing = -num_edges % size
    num_blocks = (num_edges + num_missing) // size

    def split(array, value):
        widths = ((0, num_missing),) + ((0, 0),) * (array.ndim - 1)
        padded = jnp.pad(array, widths, constant_values=value)
        return padded.reshape(num_blocks, size, *array.shape[1:])

    return EdgeInputs(
        split(edges.senders, padding_hit),
        split(edges.receivers, padding_hit),
        split(edges.mask, False),
        split(edges.scalars, 0),
    )


def masked(value: Float[Array, "edge feat"], edges: EdgeInputs) -> Float[Array, "edge feat"]:
    """The value where the edge is real, else 0, ready to be summed."""
    real = value * edges.mask[:, None].astype(value.dtype)
    return real.astype(wide_dtype(value.dtype))


def _distance(x, x_i, x_j, pair_product, edges: EdgeInputs):
    """|x_j - x_i| per edge, with a finite gradient where it is 0.

    In a wide latent it is taken from |x_i|^2 + |x_j|^2 - 2 x_i . x_j, which spares passes over
    [edge, feat] forth and back; rounding is then cut off at 1e-6 of the terms, and a self-loop is
    exactly 0. Positions in mm would lose too much to rounding, and have only a few columns.
    """
    if x.shape[1] < WIDE:
        squared = jnp.square(x_j - x_i).sum(axis=1)
        is_apart = squared > 0
    else:
        norm = jnp.square(x).sum(axis=1)
        both = norm[edges.receivers] + norm[edges.senders]
        squared = jnp.maximum(both - 2 * pair_product.sum(axis=1), 1e-6 * both)
        is_apart = (edges.senders != edges.receivers) & (squared > 0)
    # Double where: the square root of 0 has no finite gradient, even where it is not taken.
    return jnp.where(is_apart, jnp.sqrt(jnp.where(is_apart, squared, 1)), 0)
