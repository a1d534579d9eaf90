"""Device side: GaugeEdgeConv, a message-passing layer that knows no direction in space."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypertrack_jax.graph.segment import add_to_segments, segment_sum
from hypertrack_jax.networks.aggregation import (
    OF_ALL_AT_ONCE,
    aggregate,
    all_messages,
    no_messages,
    with_messages,
)
from hypertrack_jax.networks.edge_inputs import EdgeInputs, in_blocks, masked
from hypertrack_jax.networks.kernels import rows_at, silu, tall_matmul
from hypertrack_jax.networks.mlp import MLP, Affine, NormedLinear, apply_frozen, linear


class InvariantLinear(NamedTuple):
    """The first Linear of the message MLP, prepared per hit as far as it can be."""

    of_receiver: Float[Array, "hit feat"]
    """What a hit contributes as receiver, the bias included."""
    of_sender: Float[Array, "hit feat"]
    """What a hit contributes as sender."""
    scalar: Float[Array, "scalar_plus_1 feat"]
    """Kernel of |x_j - x_i|^2 and the other scalars."""
    position: Float[Array, "hit 3"]

    def apart(self, edges: EdgeInputs) -> Float[Array, "edge 3"]:
        """x_j - x_i of some edges."""
        of_sender = rows_at(self.position, edges.senders, sorted_ids=False)
        return of_sender - rows_at(self.position, edges.receivers)

    def __call__(self, edges: EdgeInputs) -> Float[Array, "edge feat"]:
        """The Linear's value on some edges."""
        squared = jnp.square(self.apart(edges)).sum(axis=1, keepdims=True)
        scalars = jnp.concatenate([squared.astype(self.scalar.dtype), edges.scalars], axis=1)
        return (
            rows_at(self.of_receiver, edges.receivers)
            + rows_at(self.of_sender, edges.senders, sorted_ids=False)
            + tall_matmul(scalars, self.scalar)
        )

    def shift(self, weight: Float[Array, "edge 1"], edges: EdgeInputs) -> Float[Array, "edge 3"]:
        """What some edges add to the positions of their receivers; 0 for padding."""
        bounded = jnp.tanh(weight).astype(self.position.dtype)
        return masked(self.apart(edges) * bounded, edges)


class GaugeEdgeConv(nn.Module):
    """One E(n)-equivariant layer: latents of the hits that no motion changes, and positions.

        m_ij = MLP_edge([h_i, h_j, |x_j - x_i|^2, scalars])      dims [2 c + 1 + scalars, 128, 64]
        x_i' = x_i + mean over senders j of (x_j - x_i) tanh(MLP_shift(m_ij))     dims [64, 128, 1]
        h_i' = MLP_latent([h_i, aggregate of m_ij])                          dims [c + 64, 128, 64]

    and h_i' += h_i where `residual` is set. Rotations, reflections and translations of all
    positions change no latent, and act on the new positions as on the old.

    Source: Satorras, Hoogeboom and Welling, arXiv:2102.09844, eq. 3 to 6. Deviations: shifts are
    always averaged, because the published `max` of vectors depends on the axes; the tanh keeps the
    hits from flying apart; positions are in metres, not in mm as published, because squared
    distances of 1e6 would drown all other inputs of the first Linear.
    """

    in_features: int
    num_scalars: int
    features: int = 64
    residual: bool = True
    aggregation: str = "mean"

    def setup(self):
        """Declares the MLPs, and what the aggregation has to learn."""
        width = self.features
        self.edge_first = NormedLinear(2 * self.in_features + 1 + self.num_scalars, 2 * width)
        self.edge_second = NormedLinear(2 * width, width)
        self.shift = MLP((width, 2 * width, 1), plain_last=True)
        self.latent = MLP((self.in_features + width, 2 * width, width))
        if self.aggregation in OF_ALL_AT_ONCE:
            self.all_at_once = OF_ALL_AT_ONCE[self.aggregation](width)

    def __call__(
        self,
        h: Float[Array, "hit in_feat"],
        position: Float[Array, "hit 3"],
        hit_mask: Bool[Array, " hit"],
        edges: EdgeInputs,
        degree: Float[Array, " hit"],
        train: bool,
    ) -> tuple[Float[Array, "hit feat"], Float[Array, "hit 3"]]:
        """The hits' next latents and positions; messages go from sender j to receiver i.

        Positions are in a unit that makes them of order 1, and stay in float32 or wider where `h`
        is not, so that their differences are exact.
        """
        collect = self._collect_in_training if train else self._collect_in_inference
        message, shift = collect(self._invariant_linear(h, position), edges, degree)
        new_h = self.latent(jnp.concatenate([h, message], axis=1), hit_mask, train)
        # As in `SuperEdgeConv`.
        new_h = jnp.where(hit_mask[:, None], new_h, 0)
        mean_shift = shift / jnp.maximum(degree, 1)[:, None]
        return new_h + h if self.residual else new_h, position + mean_shift

    def _invariant_linear(self, h, position) -> InvariantLinear:
        c = self.in_features
        kernel = self.edge_first.kernel.astype(h.dtype)
        return InvariantLinear(
            of_receiver=linear(h, kernel[:c], self.edge_first.bias),
            of_sender=tall_matmul(h, kernel[c : 2 * c]),
            scalar=kernel[2 * c :],
            position=position,
        )

    def _collect_in_training(self, invariant: InvariantLinear, edges: EdgeInputs, degree):
        """Aggregate of the messages and sum of the shifts, per receiver."""
        hidden = silu(invariant(edges))
        first_norm = self.edge_first.norm.batch(hidden, edges.mask)
        hidden, norm = self.edge_second(hidden, edges.mask, True, first_norm)
        shift = invariant.shift(self.shift(norm(hidden), edges.mask, True), edges)
        return self._collect(hidden, shift, norm, edges, degree)

    def _collect_in_inference(self, invariant: InvariantLinear, edges: EdgeInputs, degree):
        """The same with running statistics, block by block where the aggregation allows it."""
        norm, kind, dtype = (
            self.edge_second.norm.running(),
            self.aggregation,
            invariant.scalar.dtype,
        )
        kernel, bias = self.edge_second.folded(self.edge_first.norm.running())
        shift_layers = self.shift.frozen(norm)

        def hidden_and_shift(block: EdgeInputs):
            hidden = silu(linear(silu(invariant(block)), kernel, bias))
            return hidden, invariant.shift(apply_frozen(shift_layers, hidden), block)

        def add_block(so_far, block: EdgeInputs):
            hidden, shift = hidden_and_shift(block)
            total = with_messages(kind, so_far[0], hidden, norm, block)
            return (total, add_to_segments(so_far[1], shift, block.receivers)), None

        if kind in OF_ALL_AT_ONCE:
            return self._collect(*hidden_and_shift(edges), norm, edges, degree)
        nothing = no_messages(kind, len(degree), self.features, dtype)
        blocks = in_blocks(edges, len(degree) - 1)
        so_far = (nothing, jnp.zeros_like(invariant.position))
        (total, shift), _ = jax.lax.scan(add_block, so_far, blocks)
        return aggregate(kind, total, norm, degree, dtype), shift

    def _collect(self, hidden, shift, norm: Affine, edges: EdgeInputs, degree):
        kind, num_hits = self.aggregation, len(degree)
        total_shift = segment_sum(shift, edges.receivers, num_hits)
        if kind in OF_ALL_AT_ONCE:
            return self.all_at_once(norm(hidden), edges, degree), total_shift
        total = all_messages(kind, hidden, norm, edges, num_hits)
        return aggregate(kind, total, norm, degree, hidden.dtype), total_shift
