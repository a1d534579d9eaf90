"""Device side: which cells of an event C connects, by reading its rows; all jitted.

1. `group_hits` groups the hits by cell.
2. `find_connected` reads the rows of all occupied cells in blocks of `BLOCK` entries and keeps one
   bit per entry: set where the other cell is occupied too and the count is large enough. Nothing
   as long as the rows is ever written.
3. `list_senders` turns the bits into one list of sending hits for each occupied cell.

`hit_edges` and `hit_pairs` make edges and pairs from the lists. Capacities are guesses; each result
says what it would have needed.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, UInt32

from hypertrack_jax.voxdyn.connectivity import Rows

BLOCK = 32
"""Entries of a row that one block covers: the bits of its mask."""
TOO_MANY = 2**31 - 1
"""Stands for every number that 32-bit indices do not reach."""


class EventCells(NamedTuple):
    """The hits of an event grouped by cell; slots are its occupied cells, ascending.

    There are as many slots as hits, the last of them empty where hits share a cell. Hits without a
    cell, padding among them, share the slot of cell V, which is connected with nothing.
    """

    cell: Int32[Array, " hit"]
    """The cell of each slot; V for the slot of hits without a cell, and for empty ones."""
    hit_start: Int32[Array, " hit_plus_1"]
    """Slot s holds the hits from `hit_start[s]` to `hit_start[s + 1]` of the order."""
    order: Int32[Array, " hit"]
    """Hits in the order of their cells."""
    hit_slot: Int32[Array, " hit"]
    """The slot of each hit."""


class Connected(NamedTuple):
    """Which entries of C join two occupied cells, in the order of C's rows."""

    slot: Int32[Array, " block"]
    """Slot of the receivers' cell, whose row the block is part of."""
    entry: Int32[Array, " block"]
    """First entry of the block in C."""
    mask: UInt32[Array, " block"]
    """Bit k is set where entry + k makes edges."""
    list_length: Int32[Array, " slot"]
    """Sending hits of each slot's receivers."""
    degree: Int32[Array, " slot"]
    """The same, also where each two cells are joined once only."""
    num_blocks: Int32[Array, ""]
    """The capacity that is needed."""
    is_overflow: Bool[Array, ""]
    """True where the capacity was too small: the rest is not complete."""


class SenderLists(NamedTuple):
    """The senders of each slot's receivers, one list after the other."""

    start: Int32[Array, " slot"]
    """Where the list of each slot begins."""
    sender: Int32[Array, " place"]
    """Sending hit."""
    count: Int32[Array, " place"]
    """C at the cells of sender and receivers."""
    is_overflow: Bool[Array, ""]
    """True where the capacity was too small: the lists are not complete."""


@jax.jit
def group_hits(
    cell: Int32[Array | np.ndarray, " hit"], num_cells: int | Int[Array, ""]
) -> EventCells:
    """Groups hits by cell.

    Args:
      cell: the cell of each hit; V for hits without one, and for padding.
      num_cells: V.
    """
    num_hits = len(cell)
    hit = jnp.arange(num_hits, dtype=jnp.int32)
    order = jnp.argsort(cell, stable=True).astype(jnp.int32)
    ordered = take(cell, order)
    is_first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    slot = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    first_slot = jnp.where(is_first, slot, num_hits + 1)
    return EventCells(
        cell=jnp.full(num_hits, num_cells, jnp.int32).at[first_slot].set(ordered, mode="drop"),
        hit_start=jnp.full(num_hits + 1, num_hits, jnp.int32).at[first_slot].set(hit, mode="drop"),
        order=order,
        hit_slot=jnp.zeros(num_hits, jnp.int32).at[order].set(slot, unique_indices=True),
    )


@partial(jax.jit, static_argnames=("capacity", "is_once"))
def find_connected(
    rows: Rows,
    cells: EventCells,
    min_count: Int32[Array | np.ndarray, ""],
    *,
    capacity: int,
    is_once: bool = False,
) -> Connected:
    """Reads the rows of all occupied cells.

    Args:
      rows: C.
      cells: the event, padded.
      min_count: smallest count of an entry that makes edges.
      capacity: room for the blocks of these rows.
      is_once: keep only the entries on and above the diagonal, one for each two cells.

    Returns:
      The entries that join two occupied cells.
    """
    num_cells, num_slots = len(rows.row_offsets) - 1, len(cells.cell)
    row_offsets = jnp.asarray(rows.row_offsets)
    row_start = row_offsets.at[cells.cell].get(mode="clip")
    row_end = row_offsets.at[cells.cell + 1].get(mode="clip")
    num_blocks = -((row_start - row_end) // BLOCK)
    slot, place, is_block, is_overflow = expand(num_blocks, capacity)
    entry = jnp.where(is_block, take(row_start, slot) + BLOCK * place, 0)
    end = jnp.where(is_block, take(row_end, slot), 0)

    lane = jnp.arange(BLOCK, dtype=jnp.int32)[None, :]
    lane_entry = entry[:, None] + lane
    near = jnp.minimum(lane_entry, len(rows.columns) - 1)
    slot_size = jnp.diff(cells.hit_start)
    cell_size = jnp.zeros(num_cells, jnp.int32).at[cells.cell].set(slot_size, mode="drop")
    senders = take(cell_size, take(rows.columns, near))
    is_kept = (
        (lane_entry < end[:, None])
        & (senders > 0)
        & (take(rows.counts, near).astype(jnp.int32) >= min_count)
    )

    def list_length(is_kept):
        block_senders = jnp.where(is_kept, senders, 0).sum(axis=1, dtype=jnp.int32)
        return jax.ops.segment_sum(block_senders, slot, num_slots, indices_are_sorted=True)

    degree = length = list_length(is_kept)
    if is_once:
        is_kept &= take(rows.columns, near) >= take(cells.cell, slot)[:, None]
        length = list_length(is_kept)
    mask = (is_kept.astype(jnp.uint32) << lane.astype(jnp.uint32)).sum(axis=1, dtype=jnp.uint32)
    return Connected(slot, entry, mask, length, degree, total(num_blocks), is_overflow)


@partial(jax.jit, static_argnames="capacity")
def list_senders(
    rows: Rows, cells: EventCells, connected: Connected, *, capacity: int
) -> SenderLists:
    """Lists the senders of each occupied cell's receivers.

    Args:
      rows: C.
      cells: the event, padded.
      connected: from `find_connected`.
      capacity: room for all lists.

    Returns:
      The lists.
    """
    num_cells, num_slots = len(rows.row_offsets) - 1, len(cells.cell)
    slots = jnp.arange(num_slots, dtype=jnp.int32)
    slot_of_cell = jnp.zeros(num_cells, jnp.int32).at[cells.cell].set(slots, mode="drop")
    # Every pair of cells has at least one sender, so the lists' capacity is enough for the pairs.
    block, rank, is_pair, _ = expand(
        lax.population_count(connected.mask).astype(jnp.int32), capacity
    )
    entry = take(connected.entry, block) + _select_bit(take(connected.mask, block), rank)
    entry = jnp.where(is_pair, entry, 0)
    sender_slot = take(slot_of_cell, take(rows.columns, entry))
    slot_size = jnp.diff(cells.hit_start)
    pair_senders = jnp.where(is_pair, take(slot_size, sender_slot), 0)
    pair, place, is_place, is_overflow = expand(pair_senders, capacity)
    hit = take(take(jnp.asarray(cells.hit_start), sender_slot), pair) + place
    return SenderLists(
        start=jnp.cumsum(connected.list_length) - connected.list_length,
        sender=take(cells.order, jnp.where(is_place, hit, 0)),
        count=take(take(rows.counts, entry).astype(jnp.int32), pair),
        is_overflow=connected.is_overflow | is_overflow,
    )


def readable(rows: Rows) -> Rows:
    """C with at least one entry, since an empty array cannot be read; no row has that entry."""
    if len(rows.columns):
        return rows
    return rows._replace(columns=jnp.zeros(1, jnp.int32), counts=jnp.zeros(1, jnp.uint16))


def expand(
    lengths: Int32[Array, " item"], size: int
) -> tuple[Int32[Array, " place"], Int32[Array, " place"], Bool[Array, " place"], Bool[Array, ""]]:
    """Lays out `lengths[k]` places for each item k, one item after the other.

    Returns:
      The item of each place, the place's number within the item, whether the place is taken, and
      whether there are too few places.
    """
    start = jnp.cumsum(lengths) - lengths
    # Not `jnp.repeat`, which reads the numbers of the items from an array of them: 6.3e6 places
    # took 54 ms instead of 35 (two cores, jax 0.10.1).
    is_start = jnp.zeros(size, jnp.int32).at[start].add(1, mode="drop")
    item = jnp.cumsum(is_start) - 1
    places = jnp.arange(size, dtype=jnp.int32)
    number = total(lengths)
    return item, places - take(start, item), places < number, number > size


def total(lengths: Int32[Array, " item"]) -> Int32[Array, ""]:
    """Their sum, or `TOO_MANY`."""
    # The float sum detects totals that wrap around in 32 bits; the integer sum is exact below.
    is_too_large = lengths.astype(jnp.float32).sum() > 2**30
    return jnp.where(is_too_large, TOO_MANY, lengths.sum(dtype=jnp.int32))


def _select_bit(mask: UInt32[Array, " n"], rank: Int32[Array, " n"]) -> Int32[Array, " n"]:
    """Position of the set bit that has `rank` set bits below it, by halving the word."""
    position = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        low = mask & jnp.uint32((1 << width) - 1)
        num_low = lax.population_count(low).astype(jnp.int32)
        is_above = rank >= num_low
        rank = jnp.where(is_above, rank - num_low, rank)
        mask = jnp.where(is_above, mask >> jnp.uint32(width), mask)
        position += jnp.where(is_above, width, 0)
    return position


def take(table: Array | np.ndarray, index: Array | np.ndarray) -> Array:
    """Reads `table[index]`; every index here is in bounds by construction."""
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")
