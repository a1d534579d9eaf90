"""Device side: the edges that are kept, as one row of neighbours per hit."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Shaped

from hypertrack_jax.graph.segment import ordered_rows


class Neighbors(NamedTuple):
    """Neighbours of each hit along kept edges, in the order of the edges."""

    hit: Int32[Array, "hit neighbor"]
    """Index of the neighbour; the number of hits where there is none."""
    probability: Float[Array, "hit neighbor"]
    """Probability of the edge; 0 where there is none."""
    degree: Int32[Array, " hit"]
    """Number of kept edges, also where the row is too short for them."""


def kept_neighbors(
    probability: Float[Array, " edge"],
    senders: Int32[Array, " edge"],
    receivers: Int32[Array, " edge"],
    edge_mask: Bool[Array, " edge"],
    num_hits: int,
    capacity: int,
    edge_threshold: float | Float[Array, ""],
) -> Neighbors:
    """Rows of the neighbours by edges above a threshold, self-loops left out.

    Args:
      probability: probability of each edge to be true.
      senders: the neighbour.
      receivers: the hit whose neighbour it is, in rising order.
      edge_mask: True where the edge is real.
      num_hits: number of hits, padding included.
      capacity: length of the rows.
      edge_threshold: an edge is kept when its probability is above it.

    Returns:
      The rows. They lack edges where `degree` is above `capacity`: the caller takes longer ones.
    """
    is_kept = edge_mask & (senders != receivers) & (probability > edge_threshold)
    edge, degree = ordered_rows(is_kept, receivers, num_hits, capacity)
    is_edge = edge < len(senders)
    # An index past the end reads the last edge, which is then overwritten.
    return Neighbors(
        hit=jnp.where(is_edge, senders[edge], num_hits),
        probability=jnp.where(is_edge, probability[edge], 0),
        degree=degree,
    )


def at_hits(
    values: Shaped[Array, "hit *dims"], hit: Int32[Array, "*place"], missing: int | float | bool
) -> Shaped[Array, "..."]:
    """Values of some hits; `missing` where the index is past the last hit."""
    return values.at[hit].get(mode="fill", fill_value=missing)


def largest_around(
    values: Int32[Array, "hit *dims"], around: Int32[Array, "hit neighbor"]
) -> Int32[Array, "hit *dims"]:
    """The largest of the values of each hit's neighbours; -1 where it has none.

    Column by column, and with a place for those that are missing: XLA on CPU then reads the values
    of a hit as they lie in memory, which takes an eighth of the time of `at_hits` with all columns.

    Args:
      values: of each hit, at least -1.
      around: index of each neighbour, as `Neighbors` has it.
    """
    missing = jnp.full_like(values[:1], -1)
    values = jnp.concatenate([values, missing])
    columns = in_groups(around, len(values) - 1)

    def with_group(k, largest):
        for column in columns[k]:
            largest = jnp.maximum(largest, values.at[column].get(mode="promise_in_bounds"))
        return largest

    start = jnp.broadcast_to(missing, (len(around), *values.shape[1:]))
    return lax.fori_loop(0, len(columns), with_group, start)


def in_groups(
    rows: Int32[Array, "row column"], missing: int, size: int = 8
) -> Int32[Array, "group member row"]:
    """The columns of an array in groups, filled up with `missing`.

    A loop over them, with the columns of a group written out, runs as fast as with all columns
    written out and is compiled in a fraction of the time.
    """
    num_columns = rows.shape[1]
    size = min(size, max(num_columns, 1))
    padded = jnp.pad(rows.T, ((0, -num_columns % size), (0, 0)), constant_values=missing)
    return padded.reshape(-1, size, len(rows))
