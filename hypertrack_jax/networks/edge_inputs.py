"""Device side: the edges as the convolutions see them, whole or block by block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.networks.features import NUM_ODD_HELIX
from hypertrack_jax.networks.mlp import wide_dtype

EDGE_BLOCK = 8192
"""Edges handled together in inference, so that what is computed of them stays in cache."""
NUM_ODD = 1 + NUM_ODD_HELIX
"""Scalars that change sign when the hits are exchanged, which are the first."""


class EdgeInputs(NamedTuple):
    """What every layer needs of the edges; sorted by receiver."""

    senders: Int[Array, " edge"]
    receivers: Int[Array, " edge"]
    mask: Bool[Array, " edge"]
    scalars: Float[Array, "edge scalar"]
    """Inputs that are the same in every layer: the degree attribute a_ij, then features."""


class PairInputs(EdgeInputs):
    """The same, but each stands for sender -> receiver and for the way back, self-loops apart.

    On the way back the first `NUM_ODD` scalars have the other sign.
    """


def in_blocks(edges: EdgeInputs, padding_hit: int) -> EdgeInputs:
    """The edges as [block, EDGE_BLOCK, ...], filled up with padding edges at `padding_hit`.

    Of pairs there are half as many in a block, because each is two edges.
    """
    num_edges = len(edges.mask)
    block = EDGE_BLOCK // 2 if isinstance(edges, PairInputs) else EDGE_BLOCK
    size = min(block, max(num_edges, 1))
    num_missing = -num_edges % size
    num_blocks = (num_edges + num_missing) // size

    def split(array, value):
        widths = ((0, num_missing),) + ((0, 0),) * (array.ndim - 1)
        padded = jnp.pad(array, widths, constant_values=value)
        return padded.reshape(num_blocks, size, *array.shape[1:])

    return type(edges)(
        split(edges.senders, padding_hit),
        split(edges.receivers, padding_hit),
        split(edges.mask, False),
        split(edges.scalars, 0),
    )


def num_real_blocks(blocks: EdgeInputs) -> Int[Array, ""]:
    """How many blocks of `in_blocks` have a real edge; those without are the last."""
    return blocks.mask.any(axis=1).sum(dtype=jnp.int32)


def block_at(blocks: EdgeInputs, place: Int[Array, ""]) -> EdgeInputs:
    """One block of `in_blocks`."""
    return jax.tree.map(lambda array: array[place], blocks)


def masked(value: Float[Array, "edge feat"], edges: EdgeInputs) -> Float[Array, "edge feat"]:
    """The value where the edge is real, else 0, ready to be summed."""
    real = value * edges.mask[:, None].astype(value.dtype)
    return real.astype(wide_dtype(value.dtype))


@jax.custom_vjp
def pair_product(
    x: Float[Array, "hit feat"], senders: Int[Array, " edge"], receivers: Int[Array, " edge"]
) -> Float[Array, "edge feat"]:
    """x_i x_j of every edge; keeps x alone for the gradient, and no array over edges."""
    return x[receivers] * x[senders]


def _product_forward(x, senders, receivers):
    return pair_product(x, senders, receivers), (x, senders, receivers)


def _product_backward(residuals, gradient):
    x, senders, receivers = residuals
    # Else XLA finds the same x_i and x_j in the forward pass, and keeps them in memory up to here.
    x = jax.lax.optimization_barrier(x)
    of_receiver = segment_sum(gradient * x[senders], receivers, len(x))
    of_sender = segment_sum(gradient * x[receivers], senders, len(x), sorted_ids=False)
    return of_receiver + of_sender, None, None


pair_product.defvjp(_product_forward, _product_backward)
