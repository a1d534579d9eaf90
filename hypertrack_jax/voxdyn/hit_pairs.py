"""Device side: the pairs of hits that C joins, each once, made a block at a time.

The pairs of a full event do not fit in memory; the lists that they are made from do.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from hypertrack_jax.voxdyn.connectivity import Rows
from hypertrack_jax.voxdyn.lookup import (
    EventCells,
    SenderLists,
    expand,
    find_connected,
    group_hits,
    list_senders,
    readable,
    take,
    total,
)


class PairLists(NamedTuple):
    """Lists from which the pairs that C joins are made. They are far shorter than the pairs."""

    cells: EventCells
    lists: SenderLists
    list_length: Int32[Array, " slot"]
    """Length of each slot's list."""
    degree: Int32[Array, " hit"]
    """Edges of each hit in the whole graph, a self-loop among them."""
    num_blocks: Int32[Array, ""]
    """The capacity for blocks that is needed."""
    num_places: Int32[Array, ""]
    """The capacity for the lists that is needed, if that for blocks suffices."""
    num_raw: Int32[Array, ""]
    """Pairs that `pair_block` counts through, or `TOO_MANY`."""


class PairBlock(NamedTuple):
    """Pairs of hits, each once and none of a hit with itself."""

    one: Int32[Array, " pair"]
    """The hit whose list the pair is from; it ascends."""
    other: Int32[Array, " pair"]
    count: Int32[Array, " pair"]
    """C at the cells of both."""
    mask: Bool[Array, " pair"]
    """False where there is no pair."""


@partial(jax.jit, static_argnames=("block_capacity", "place_capacity"))
def pair_lists(
    rows: Rows,
    cell: Int32[Array | np.ndarray, " hit"],
    min_count: Int32[Array | np.ndarray, ""],
    *,
    block_capacity: int,
    place_capacity: int,
) -> PairLists:
    """The lists from which `pair_block` makes the pairs of an event.

    Args:
      rows: C.
      cell: the cell of each hit; V for hits without one, and for padding.
      min_count: smallest count of an entry that makes edges.
      block_capacity: as in `edges_of_cells`.
      place_capacity: room for the lists of all occupied cells.
    """
    rows = readable(rows)
    cells = group_hits(cell, len(rows.row_offsets) - 1)
    connected = find_connected(rows, cells, min_count, capacity=block_capacity, is_once=True)
    lists = list_senders(rows, cells, connected, capacity=place_capacity)
    return PairLists(
        cells,
        lists,
        connected.list_length,
        take(connected.degree, cells.hit_slot),
        connected.num_blocks,
        total(connected.list_length),
        total(take(connected.list_length, cells.hit_slot)),
    )


def pair_block(made: PairLists, first: Int32[Array, ""], *, size: int) -> PairBlock:
    """Pairs number `first` to `first + size`, of `num_raw` in all.

    Args:
      made: from `pair_lists`.
      first: the first of them.
      size: how many.
    """
    cells, lists = made.cells, made.lists
    lengths = take(made.list_length, cells.hit_slot)
    end = jnp.cumsum(lengths)
    start = end - lengths
    inside = jnp.clip(end, first, first + size) - jnp.clip(start, first, first + size)
    one, place, is_pair, _ = expand(inside, size)
    # The first hit of the block may have begun in the one before.
    place += jnp.maximum(first - take(start, one), 0)
    at = jnp.where(is_pair, take(take(lists.start, cells.hit_slot), one) + place, 0)
    other = take(lists.sender, at)
    # Hits of one cell find each other in both orders.
    is_same_cell = take(cells.hit_slot, one) == take(cells.hit_slot, other)
    mask = is_pair & jnp.where(is_same_cell, other < one, True)
    return PairBlock(one, other, take(lists.count, at), mask)
