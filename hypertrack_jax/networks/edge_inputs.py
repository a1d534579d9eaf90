"""Device side: the edges as the convolutions see them, whole or block by block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from hypertrack_jax import device
from hypertrack_jax.networks.features import NUM_ODD_HELIX
from hypertrack_jax.networks.kernels import block_size, masked_moments, wide_dtype

NUM_ODD = 1 + NUM_ODD_HELIX
"""Scalars that change sign when the hits are exchanged, which are the first."""


class EdgeInputs(NamedTuple):
    """The edges as every layer needs them, sorted by receiver."""

    senders: Int[Array, " edge"]
    receivers: Int[Array, " edge"]
    mask: Bool[Array, " edge"]
    scalars: Float[Array, "edge scalar"]
    """Inputs that are the same in every layer: the degree attribute a_ij, then features."""


class PairInputs(EdgeInputs):
    """Pairs of edges, sender -> receiver and the way back; a self-loop is a pair of its own.

    On the way back the first `NUM_ODD` scalars have the other sign.
    """


def are_many(edges: EdgeInputs) -> bool:
    """Whether training goes by blocks; this is decided when it is compiled."""
    return len(edges.mask) > device.blocks().whole_edges


def in_blocks(edges: EdgeInputs, padding_hit: int, train: bool = False) -> EdgeInputs:
    """The edges as [block, edge, ...], filled up with padding edges at `padding_hit`."""
    num_edges = len(edges.mask)
    size = block_size(num_edges, isinstance(edges, PairInputs), train)
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


def map_real_blocks(
    function: Callable[[EdgeInputs], Shaped[Array, "edge ..."]], blocks: EdgeInputs
) -> Shaped[Array, "edge ..."]:
    """A function of blocks over all edges, without a gradient; 0 for blocks of padding alone."""
    one = jax.eval_shape(function, jax.eval_shape(block_at, blocks, jnp.int32(0)))

    def put(place, values):
        return values.at[place].set(function(block_at(blocks, place)))

    values = jnp.zeros((len(blocks.mask), *one.shape), one.dtype)
    values = jax.lax.fori_loop(0, num_real_blocks(blocks), put, values)
    return values.reshape(-1, *one.shape[1:])


def scan_blocks(
    function: Callable[[Any, EdgeInputs], tuple[Any, Any]], start: Any, blocks: EdgeInputs
) -> tuple[Any, Any]:
    """`lax.scan` of a function that is computed again for the gradient, so that nothing is kept.

    The loop is needed: without one, XLA on CPU computes again but still keeps all values. Blocks of
    padding alone are skipped: they give zeros and leave the carry as it is.
    """
    one = jax.tree.map(lambda array: array[0], blocks)
    function, shared = jax.closure_convert(function, start, one)
    # In float32, in which the gradients of what all blocks share are then added up.
    wide = [array.astype(wide_dtype(array.dtype)) for array in shared]

    @jax.checkpoint
    def step(carry, block: EdgeInputs):
        narrow = [array.astype(before.dtype) for array, before in zip(wide, shared, strict=True)]

        def taken(carry, block):
            return function(carry, block, *narrow)

        def skipped(carry, block):
            _, shapes = jax.eval_shape(taken, carry, block)
            return carry, jax.tree.map(jnp.zeros_like, shapes)

        return jax.lax.cond(block.mask.any(), taken, skipped, carry, block)

    return jax.lax.scan(step, start, blocks)


def joint_moments(
    mean: Float[Array, "block feat"],
    var: Float[Array, "block feat"],
    count: Float[Array, " block"],
) -> tuple[Float[Array, " feat"], Float[Array, " feat"], Float[Array, ""]]:
    """`masked_moments` of all rows from those of each block, zeros where one was passed over."""
    total = jnp.maximum(count.sum(), 1)
    share = count / total
    joint = share @ mean
    return joint, share @ (var + jnp.square(mean - joint[None, :])), total


def moments_in_blocks(
    value_of: Callable[[EdgeInputs], Float[Array, "row feat"]], blocks: EdgeInputs
) -> tuple[Float[Array, " feat"], Float[Array, " feat"], Float[Array, ""]]:
    """`masked_moments` of a function of all edges, of which one may have several rows."""

    def of_block(_, block: EdgeInputs):
        value = value_of(block)
        return None, masked_moments(value, jnp.tile(block.mask, len(value) // len(block.mask)))

    return joint_moments(*scan_blocks(of_block, None, blocks)[1])


def masked(value: Float[Array, "edge feat"], edges: EdgeInputs) -> Float[Array, "edge feat"]:
    """The value where the edge is real, else 0, ready to be summed."""
    return jnp.where(edges.mask[:, None], value, 0).astype(wide_dtype(value.dtype))
