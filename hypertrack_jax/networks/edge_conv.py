"""Device side: SuperEdgeConv, the message-passing layer of the GNN (algorithm section 3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.networks.mlp import MLP, NormedLinear


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
        hidden = jax.nn.silu(self._first_linear(x, edges))
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
        of_receiver = x @ (own - difference) + self.edge_first.bias[None, :].astype(x.dtype)
        of_sender = x @ difference
        x_i, x_j = x[edges.receivers], x[edges.senders]
        pair_product = x_i * x_j
        squared = jnp.square(x_j - x_i).sum(axis=1)
        # Double where: the square root of a self-loop's 0 has no finite gradient.
        is_apart = squared > 0
        distance = jnp.where(is_apart, jnp.sqrt(jnp.where(is_apart, squared, 1)), 0)
        scalars = jnp.concatenate(
            [distance[:, None], pair_product.sum(axis=1)[:, None], edges.scalars], axis=1
        )
        return (
            of_receiver[edges.receivers]
            + of_sender[edges.senders]
            + pair_product @ product
            + scalars @ kernel[3 * c :]
        )
