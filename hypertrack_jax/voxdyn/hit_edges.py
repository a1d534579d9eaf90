"""Device side: the edges of an event from the cells of its hits.

Receivers ascend, so nothing is sorted; the senders of a receiver follow the order of their cells.
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


class HitEdges(NamedTuple):
    """Edges sorted by receiver."""

    senders: Int32[Array, " edge"]
    receivers: Int32[Array, " edge"]
    counts: Int32[Array, " edge"]
    num_edges: Int32[Array, ""]
    """How many edges there are, also where the places do not suffice; or `TOO_MANY`."""
    is_overflow: Bool[Array, ""]
    """True where a capacity was too small: the edges are not complete."""


class EdgesOfCells(NamedTuple):
    """The edges of a whole event."""

    edges: HitEdges
    num_blocks: Int32[Array, ""]
    """The capacity for blocks that was needed; where it was exceeded, the edges have not been
    counted to the end."""


@partial(jax.jit, static_argnames=("block_capacity", "edge_capacity"))
def edges_of_cells(
    rows: Rows,
    cell: Int32[Array | np.ndarray, " hit"],
    min_count: Int32[Array | np.ndarray, ""],
    *,
    block_capacity: int,
    edge_capacity: int,
) -> EdgesOfCells:
    """The edges of a whole event.

    Args:
      rows: C.
      cell: the cell of each hit; V for hits without one, and for padding.
      min_count: smallest count of an entry that makes edges.
      block_capacity: room for the blocks of the rows of all occupied cells: each row
        takes as many of `BLOCK` entries as it needs.
      edge_capacity: room for the edges.

    Returns:
      The edges.
    """
    rows = readable(rows)
    cells = group_hits(cell, len(rows.row_offsets) - 1)
    connected = find_connected(rows, cells, min_count, capacity=block_capacity)
    # A list has at least one receiver, so the edges' capacity is enough for all lists.
    lists = list_senders(rows, cells, connected, capacity=edge_capacity)
    edges = connect_hits(cells, lists, connected.list_length, capacity=edge_capacity)
    return EdgesOfCells(edges, connected.num_blocks)


@partial(jax.jit, static_argnames="capacity")
def connect_hits(
    cells: EventCells,
    lists: SenderLists,
    list_length: Int32[Array, " slot"],
    *,
    capacity: int,
) -> HitEdges:
    """The edges into all hits: each receives from the list of its cell.

    Args:
      cells: the event, padded.
      lists: from `list_senders`.
      list_length: length of each slot's list.
      capacity: room for the edges.

    Returns:
      The edges; places after the last edge hold edge 0 of the lists and have to be left out.
    """
    degree = take(list_length, cells.hit_slot)
    receiver, place, is_edge, is_overflow = expand(degree, capacity)
    at = take(take(lists.start, cells.hit_slot), receiver) + place
    at = jnp.where(is_edge, at, 0)
    return HitEdges(
        senders=take(lists.sender, at),
        receivers=receiver,
        counts=take(lists.count, at),
        num_edges=total(degree),
        is_overflow=lists.is_overflow | is_overflow,
    )
