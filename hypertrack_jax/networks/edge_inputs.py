"""Device side: the edges as the convolutions see them, whole or block by block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.networks.features import NUM_ODD_HELIX
from hypertrack_jax.networks.mlp import masked_moments, wide_dtype

EDGE_BLOCK = 8192
"""Edges handled together in inference on a CPU, so that what is computed of them stays in cache."""
ACCELERATOR_BLOCK = 131072
"""The same on other devices, in training, too: an array of 64 values for each edge has 34 MB, of
which the 50 MB second-level cache of an H100 holds one, and is as many as thirty for each of its
threads. Reckoned and not measured."""
WHOLE_EDGES = 131072
"""Largest edge capacity at which training keeps what it computes of all edges for the gradient:
8 kB an edge. Above it blocks are computed again instead: a fifth to a twentieth of the memory and
about as fast on two CPU cores, but twice as long to compile. Below it they were up to a quarter
slower in full buckets."""
TRAINING_BLOCK = 16384
"""Edges handled together in training where there are more than `WHOLE_EDGES`. Twice as many took
30 % longer at 2e5 edges, and 5 % less at 2.4e6, where every block adds to a larger gradient."""
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


def are_many(edges: EdgeInputs) -> bool:
    """Whether training goes by blocks, a choice that is made when it is compiled."""
    return len(edges.mask) > WHOLE_EDGES


def block_size(are_pairs: bool, train: bool = False) -> int:
    """Edges in a block; of pairs half as many, because each is two edges."""
    if jax.default_backend() != "cpu":
        size = ACCELERATOR_BLOCK
    else:
        size = TRAINING_BLOCK if train else EDGE_BLOCK
    return size // 2 if are_pairs else size


def in_blocks(edges: EdgeInputs, padding_hit: int, train: bool = False) -> EdgeInputs:
    """The edges as [block, edge, ...], filled up with padding edges at `padding_hit`."""
    num_edges = len(edges.mask)
    size = min(block_size(isinstance(edges, PairInputs), train), max(num_edges, 1))
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
    """What a function of blocks gives of all edges, 0 for blocks of padding alone; no gradient."""
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

    Without a loop XLA on CPU makes nothing of `jax.checkpoint`: it computes again, but keeps all.
    Blocks of padding alone are passed over: they give zeros, and leave the carry as it is.
    """

    @jax.checkpoint
    def step(carry, block: EdgeInputs):
        def skipped(carry, block):
            _, shapes = jax.eval_shape(function, carry, block)
            return carry, jax.tree.map(jnp.zeros_like, shapes)

        return jax.lax.cond(block.mask.any(), function, skipped, carry, block)

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
