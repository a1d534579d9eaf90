"""Device side: SuperEdgeConv, the message-passing layer of the GNN (algorithm section 3)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypertrack_jax.graph.segment import add_to_segments
from hypertrack_jax.networks.aggregation import (
    OF_ALL_AT_ONCE,
    SUMMED,
    aggregate,
    all_messages,
    no_messages,
    with_messages,
)
from hypertrack_jax.networks.edge_inputs import (
    NUM_ODD,
    EdgeInputs,
    PairInputs,
    are_many,
    block_at,
    in_blocks,
    joint_moments,
    masked,
    moments_in_blocks,
    num_real_blocks,
    scan_blocks,
)
from hypertrack_jax.networks.kernels import (
    masked_moments,
    pair_product,
    rows_at,
    silu,
    tall_matmul,
)
from hypertrack_jax.networks.mlp import MLP, Affine, NormedLinear, linear

WIDE = 16
"""Width from which distances are computed from scalar products."""


class PairLinear(NamedTuple):
    """The first Linear of the message MLP, prepared per hit as far as it can be."""

    x: Float[Array, "hit in_feat"]
    of_receiver: Float[Array, "hit feat"]
    """What a hit contributes as receiver, the bias included."""
    of_sender: Float[Array, "hit feat"]
    """What a hit contributes as sender."""
    product: Float[Array, "in_feat feat"]
    """Kernel of x_j x_i; that of x_j . x_i, their sum, is added to each of its rows."""
    distance: Float[Array, "1 feat"]
    """Kernel of |x_j - x_i|."""
    scalar: Float[Array, "scalar feat"]
    """Kernel of the other scalars, which nothing learns."""

    def __call__(self, edges: EdgeInputs) -> Float[Array, "edge feat"]:
        """The Linear's value on some edges."""
        product = pair_product(self.x, edges.senders, edges.receivers)
        distance = _distance(self.x, product, edges)
        return (
            rows_at(self.of_receiver, edges.receivers)
            + rows_at(self.of_sender, edges.senders, sorted_ids=False)
            + tall_matmul(product, self.product)
            # Apart from the other scalars, for which no gradient has to be computed.
            + tall_matmul(distance[:, None], self.distance)
            + tall_matmul(edges.scalars, self.scalar)
        )

    def both_ways(self, pairs: PairInputs) -> tuple[Array, Array]:
        """The Linear's value on the edges sender -> receiver, and on those back."""
        receivers, senders = pairs.receivers, pairs.senders
        product = pair_product(self.x, senders, receivers)
        odd, even = pairs.scalars[:, :NUM_ODD], pairs.scalars[:, NUM_ODD:]
        same = (
            product @ self.product
            + _distance(self.x, product, pairs)[:, None] * self.distance
            + even @ self.scalar[NUM_ODD:]
        )
        turned = odd @ self.scalar[:NUM_ODD]
        there = same + turned + self.of_receiver[receivers] + self.of_sender[senders]
        return there, same - turned + self.of_receiver[senders] + self.of_sender[receivers]


class SuperEdgeConv(nn.Module):
    """One layer: messages over edges, their aggregate per receiver, and an update of the hits.

    The first Linear of the message MLP acts on [x_i, x_j - x_i, x_j x_i, |x_j - x_i|, x_j . x_i,
    scalars]. It is evaluated in parts, W [x_i, x_j - x_i] = (W_1 - W_2) x_i + W_2 x_j, so that two
    thirds of its work is done per hit and not per edge. Neither norm of the message MLP is applied
    on edges: the first is folded into the second Linear, the second commutes with the mean, which
    is the published aggregation; `aggregation.py` has the others.
    """

    in_features: int
    num_scalars: int
    features: int = 64
    residual: bool = True
    aggregation: str = "mean"

    def setup(self):
        """Declares the message MLP, the update MLP, and what the aggregation has to learn."""
        self.edge_first = NormedLinear(3 * self.in_features + 2 + self.num_scalars, self.features)
        self.edge_second = NormedLinear(self.features, self.features)
        self.latent = MLP((self.in_features + self.features, self.features, self.features))
        if self.aggregation in OF_ALL_AT_ONCE:
            self.all_at_once = OF_ALL_AT_ONCE[self.aggregation](self.features)

    def __call__(
        self,
        x: Float[Array, "hit in_feat"],
        hit_mask: Bool[Array, " hit"],
        edges: EdgeInputs,
        degree: Float[Array, " hit"],
        train: bool,
    ) -> Float[Array, "hit feat"]:
        """The hits' next latent; messages go from sender j to receiver i."""
        collect = self._collect_in_training if train else self._collect_in_inference
        if train and are_many(edges) and self.aggregation in SUMMED:
            collect = self._collect_in_training_by_blocks
        message = collect(self._pair_linear(x), edges, degree)
        y = self.latent(jnp.concatenate([x, message], axis=1), hit_mask, train)
        # Where all real rows are alike, a norm multiplies padding by hundreds; layer after layer
        # it would overflow, and reach the gradient.
        y = jnp.where(hit_mask[:, None], y, 0)
        return y + x if self.residual else y

    def _pair_linear(self, x) -> PairLinear:
        c = self.in_features
        kernel = self.edge_first.kernel.astype(x.dtype)
        own, difference, product = kernel[:c], kernel[c : 2 * c], kernel[2 * c : 3 * c]
        distance_row, dot_row, scalar_rows = kernel[3 * c], kernel[3 * c + 1], kernel[3 * c + 2 :]
        return PairLinear(
            x,
            of_receiver=linear(x, own - difference, self.edge_first.bias),
            of_sender=tall_matmul(x, difference),
            product=product + dot_row[None, :],
            distance=distance_row[None, :],
            scalar=scalar_rows,
        )

    def _collect_in_training(self, pair_linear: PairLinear, edges: EdgeInputs, degree):
        hidden = silu(pair_linear(edges))
        first_norm = self.edge_first.norm.batch(hidden, edges.mask)
        hidden, norm = self.edge_second(hidden, edges.mask, True, first_norm)
        return self._collect(hidden, norm, edges, degree)

    def _collect_in_training_by_blocks(self, pair_linear: PairLinear, edges: EdgeInputs, degree):
        """The same, block by block: one pass for the first norm, one for the second and the sums.

        The gradient computes every block again, so of a layer only arrays over hits are kept.
        """
        kind, dtype = self.aggregation, pair_linear.x.dtype
        blocks = in_blocks(edges, len(degree) - 1, train=True)
        moments = moments_in_blocks(lambda block: silu(pair_linear(block)), blocks)
        kernel, bias = self.edge_second.folded(self.edge_first.norm.of_moments(*moments))

        def add_block(total, block):
            hidden = silu(linear(silu(pair_linear(block)), kernel, bias))
            moments = masked_moments(hidden, block.mask)
            return add_to_segments(total, masked(hidden, block), block.receivers), moments

        total = no_messages(kind, len(degree), self.features, dtype)
        total, moments = scan_blocks(add_block, total, blocks)
        norm = self.edge_second.norm.of_moments(*joint_moments(*moments))
        return aggregate(kind, total, norm, degree, dtype)

    def _collect_in_inference(self, pair_linear: PairLinear, edges: EdgeInputs, degree):
        """The same with running statistics; block by block, no [edge, feat] array is ever whole."""
        kernel, bias = self.edge_second.folded(self.edge_first.norm.running())
        norm, kind, dtype = self.edge_second.norm.running(), self.aggregation, pair_linear.x.dtype

        def hidden_of(value):
            return silu(linear(silu(value), kernel, bias))

        if kind in OF_ALL_AT_ONCE:
            return self._collect(hidden_of(pair_linear(edges)), norm, edges, degree)
        blocks = in_blocks(edges, len(degree) - 1)

        def add_block(place, total):
            block = block_at(blocks, place)
            if not isinstance(block, PairInputs):
                return with_messages(kind, total, hidden_of(pair_linear(block)), norm, block)
            there, back = map(hidden_of, pair_linear.both_ways(block))
            total = with_messages(kind, total, there, norm, block)
            has_back = block._replace(mask=block.mask & (block.senders != block.receivers))
            back = masked(back, has_back)
            return add_to_segments(total, back, block.senders, sorted_ids=False)

        total = no_messages(kind, len(degree), self.features, dtype)
        total = jax.lax.fori_loop(0, num_real_blocks(blocks), add_block, total)
        return aggregate(kind, total, norm, degree, dtype)

    def _collect(self, hidden, norm: Affine, edges: EdgeInputs, degree):
        """The aggregate per receiver of the messages norm(hidden)."""
        kind, dtype = self.aggregation, hidden.dtype
        if kind in OF_ALL_AT_ONCE:
            return self.all_at_once(norm(hidden), edges, degree)
        total = all_messages(kind, hidden, norm, edges, len(degree))
        return aggregate(kind, total, norm, degree, dtype)


def _distance(x, product, edges: EdgeInputs):
    """|x_j - x_i| per edge, with a finite gradient where it is 0.

    A wide latent uses |x_i|^2 + |x_j|^2 - 2 x_i . x_j, which saves passes over [edge, feat] in both
    directions. The square is at least 1e-6 of its terms, since less is rounding; a self-loop is 0.
    Positions in mm would lose too much to rounding, and they have few columns anyway.
    """
    if x.shape[1] < WIDE:
        x_i, x_j = rows_at(x, edges.receivers), rows_at(x, edges.senders, sorted_ids=False)
        squared = jnp.square(x_j - x_i).sum(axis=1)
        is_apart = squared > 0
    else:
        norm = jnp.square(x).sum(axis=1)
        both = rows_at(norm, edges.receivers) + rows_at(norm, edges.senders, sorted_ids=False)
        squared = jnp.maximum(both - 2 * product.sum(axis=1), 1e-6 * both)
        is_apart = (edges.senders != edges.receivers) & (squared > 0)
    # Double where: the square root of 0 has no finite gradient, even where it is not taken.
    return jnp.where(is_apart, jnp.sqrt(jnp.where(is_apart, squared, 1)), 0)
