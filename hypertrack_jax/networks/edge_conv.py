"""Device side: SuperEdgeConv, the message-passing layer of the GNN (algorithm section 3)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.networks.mlp import MLP, NormedLinear, silu, tall_matmul

WIDE = 16
"""Width from which distances are computed from scalar products."""


class EdgeInputs(NamedTuple):
    """What every layer needs of the edges; sorted by receiver."""

    senders: Int[Array, " edge"]
    receivers: Int[Array, " edge"]
    mask: Bool[Array, " edge"]
    scalars: Float[Array, "edge scalar"]
    """Inputs that are the same in every layer: the degree attribute a_ij, then features."""
    degree: Float[Array, " hit"]
    """Number of real edges that each hit receives."""


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
        train: bool,
    ) -> Float[Array, "hit feat"]:
        """The hits' next latent; messages go from sender j to receiver i."""
        message = self._mean_message(x, edges, train)
        y = self.latent(jnp.concatenate([x, message], axis=1), hit_mask, train)
        return y + x if self.residual else y

    def _mean_message(self, x, edges: EdgeInputs, train: bool):
        hidden = silu(self._first_linear(x, edges))
        first_norm = (
            self.edge_first.norm.batch(hidden, edges.mask)
            if train
            else self.edge_first.norm.running()
        )
        hidden, second_norm = self.edge_second(hidden, edges.mask, train, first_norm)
        total = segment_sum(
            hidden * edges.mask[:, None].astype(x.dtype), edges.receivers, x.shape[0]
        )
        mean = total / jnp.maximum(edges.degree, 1)[:, None]
        return jnp.where(edges.degree[:, None] > 0, second_norm(mean), 0)

    def _first_linear(self, x, edges: EdgeInputs):
        c = self.in_features
        kernel = self.edge_first.kernel.astype(x.dtype)
        own, difference, product = kernel[:c], kernel[c : 2 * c], kernel[2 * c : 3 * c]
        distance_row, dot_row, scalar_rows = kernel[3 * c], kernel[3 * c + 1], kernel[3 * c + 2 :]
        of_receiver = x @ (own - difference) + self.edge_first.bias[None, :].astype(x.dtype)
        of_sender = x @ difference
        x_i, x_j = x[edges.receivers], x[edges.senders]
        pair_product = x_i * x_j
        distance = _distance(x, x_i, x_j, pair_product, edges)
        # x_j . x_i is the sum of the products, so its row of the kernel joins each of theirs.
        return (
            of_receiver[edges.receivers]
            + of_sender[edges.senders]
            + tall_matmul(pair_product, product + dot_row[None, :])
            + tall_matmul(
                jnp.concatenate([distance[:, None], edges.scalars], axis=1),
                jnp.concatenate([distance_row[None, :], scalar_rows]),
            )
        )


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
