"""The connectivity matrix C: counted pair by pair, looked up row by row, never dense.

C[u, v] is the number of true edges (i, j) with hit i in cell u and hit j in cell v, both directions
and self-loops included. Counting sorts one event's pairs on the device and merges sorted runs on
the host; the look-up is one jitted program with fixed capacities.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, Int64

COUNT_BITS = 23
"""Lowest bits of a packed pair: its count."""
CELL_BITS = 20
"""Bits of a cell, or of a hit, in a packed pair."""
MAX_COUNT = 2**COUNT_BITS - 1
"""Counts saturate here."""
MAX_CELLS = 2**CELL_BITS
"""More cells do not fit into a packed pair."""

PackedPairs = Int64[np.ndarray, " _pair"]
"""Pairs of cells u <= v with their counts, (u * V + v) << COUNT_BITS | count, ascending.

One array instead of two: it sorts, merges and travels fast. C is symmetric, so half of it will do.
The underscore: arrays of different lengths meet in one call.
"""


class Rows(NamedTuple):
    """C in compressed rows, both halves."""

    row_offsets: Int32[Array | np.ndarray, " cell_plus_1"]
    """Row u holds the entries from `row_offsets[u]` to `row_offsets[u + 1]`."""
    columns: Int32[Array | np.ndarray, " entry"]
    """Cell v of each entry, ascending within a row."""
    counts: Int32[Array | np.ndarray, " entry"]
    """C[u, v], at most `MAX_COUNT`."""


def count_event_pairs(
    senders: Int32[np.ndarray, " edge"],
    receivers: Int32[np.ndarray, " edge"],
    cell: Int32[np.ndarray, " hit"],
    num_cells: int,
) -> PackedPairs:
    """Counts the pairs of cells that the true edges of one event join.

    Args:
      senders: hit at the start of each true edge; the edges are symmetric.
      receivers: hit at its end.
      cell: cell of each hit.
      num_cells: V, at most `MAX_CELLS`.

    Returns:
      The event's pairs u <= v with their counts.
    """
    lower, upper = cell[senders], cell[receivers]
    half = lower <= upper
    lower, upper = lower[half], upper[half]
    padding = bucket_size(len(lower)) - len(lower)
    # Keys need 40 bits; 64-bit integers are switched on for this program alone.
    with jax.enable_x64(True):
        pairs, counts, num_pairs = count_pairs(
            np.pad(lower, (0, padding)), np.pad(upper, (0, padding)), len(lower), num_cells
        )
        num_pairs = int(num_pairs)
        pairs, counts = np.asarray(pairs)[:num_pairs], np.asarray(counts)[:num_pairs]
    return pack_pairs(pairs, counts)


@jax.jit
def count_pairs(
    lower: Int32[Array, " pair"], upper: Int32[Array, " pair"], num_real: Array, num_cells: Array
) -> tuple[Int64[Array, " pair"], Int32[Array, " pair"], Array]:
    """Distinct pairs of cells and how often each occurs; needs 64-bit integers.

    Args:
      lower: smaller cell of each pair.
      upper: larger cell of each pair.
      num_real: how many pairs count; the others are padding at the end.
      num_cells: V.

    Returns:
      Keys u * V + v, ascending; their counts; and how many of both are real.
    """
    size = len(lower)
    largest = jnp.iinfo(jnp.int64).max
    keys = lower.astype(jnp.int64) * num_cells + upper.astype(jnp.int64)
    keys = lax.sort(jnp.where(jnp.arange(size) < num_real, keys, largest))
    is_first = jnp.append(jnp.ones(1, bool), keys[1:] != keys[:-1])
    slot = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    counts = jnp.zeros(size, jnp.int32).at[slot].add(1, indices_are_sorted=True)
    pairs = jnp.zeros(size, jnp.int64).at[slot].set(keys, indices_are_sorted=True)
    return pairs, counts, (is_first & (keys != largest)).sum()


def pack_pairs(pairs: np.ndarray, counts: np.ndarray) -> PackedPairs:
    """Packs ascending keys u * V + v with their counts, which saturate."""
    return pairs << COUNT_BITS | np.minimum(counts, MAX_COUNT)


def unpack_pairs(packed: PackedPairs) -> tuple[np.ndarray, np.ndarray]:
    """Keys u * V + v and counts."""
    return packed >> COUNT_BITS, packed & MAX_COUNT


def merge_pairs(parts: list[PackedPairs]) -> PackedPairs:
    """Adds counts of equal pairs; the order of the parts does not matter."""
    packed = np.concatenate([np.zeros(0, np.int64), *parts])
    packed.sort()
    keys = packed >> COUNT_BITS
    start = np.flatnonzero(np.diff(keys, prepend=-1))
    keys = keys[start]
    packed &= MAX_COUNT
    return pack_pairs(keys, np.add.reduceat(packed, start) if len(start) else packed)


def push_run(runs: list[PackedPairs], run: PackedPairs) -> list[PackedPairs]:
    """Adds a sorted run to the runs of a streaming count.

    Runs of similar length merge, so that their lengths grow geometrically: each pair is merged
    O(log(number of runs)) times, and all runs together hold less than twice the pairs of C.

    Args:
      runs: runs so far, the longest first.
      run: pairs to add.

    Returns:
      The new runs.
    """
    runs = [*runs, run]
    while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
        runs = [*runs[:-2], merge_pairs(runs[-2:])]
    return runs


def to_rows(packed: PackedPairs, num_cells: int) -> Rows:
    """The compressed rows of C, both halves of it.

    Raises:
      ValueError: more entries than a 32-bit index reaches.
    """
    keys, counts = unpack_pairs(packed)
    lower, upper = np.divmod(keys, num_cells)
    mirror = lower != upper
    num_entries = len(keys) + np.count_nonzero(mirror)
    if num_entries > np.iinfo(np.int32).max:
        raise ValueError(
            f"C at --ncell={num_cells} has {num_entries} entries, more than 2^31 - 1; "
            "choose fewer events, fewer cells or a sparser --node2node."
        )
    mirrored = pack_pairs(upper[mirror] * num_cells + lower[mirror], counts[mirror])
    packed = np.concatenate([packed, mirrored])
    packed.sort()
    keys, counts = unpack_pairs(packed)
    row, column = np.divmod(keys, num_cells)
    row_offsets = np.append(0, np.cumsum(np.bincount(row, minlength=num_cells)))
    return Rows(row_offsets.astype(np.int32), column.astype(np.int32), counts.astype(np.int32))


class CellHits(NamedTuple):
    """The hits of an event in the order of their cells; slots are its occupied cells, ascending."""

    cell: Int32[Array | np.ndarray, " slot"]
    """The cell of each slot; V for padding."""
    hit_start: Int32[Array | np.ndarray, " slot_plus_1"]
    """Slot s holds the hits from `hit_start[s]` to `hit_start[s + 1]` of the order."""


class ConnectedCells(NamedTuple):
    """Pairs of occupied cells that C connects, among other entries, in the order of C's rows."""

    receiver: Int32[Array, " entry"]
    """Slot of the receivers' cell."""
    sender: Int32[Array, " entry"]
    """Slot of the senders' cell."""
    count: Int32[Array, " entry"]
    """C at the two cells."""
    num_senders: Int32[Array, " entry"]
    """Hits in the senders' cell; 0 for an entry that makes no edges."""
    is_overflow: Bool[Array, ""]
    """True where the capacity was too small: the entries are not complete."""
    num_edges: Float32[Array, ""]
    """Edges that the pairs make, rounded: room for 1 % more is room enough."""


class CellEdges(NamedTuple):
    """Edges between hits in the order of their cells, sorted by (receiver, sender)."""

    senders: Int32[Array, " edge"]
    receivers: Int32[Array, " edge"]
    counts: Int32[Array, " edge"]
    num_edges: Int32[Array, ""]
    """How many edges are real; those after them are padding."""
    is_overflow: Bool[Array, ""]
    """True where a capacity was too small: the edges are not complete."""


def group_hits(cell: Int32[np.ndarray, " hit"]) -> tuple[Int64[np.ndarray, " hit"], CellHits]:
    """The order of hits by cell, and where each occupied cell begins in it."""
    order = np.argsort(cell, kind="stable")
    occupied, start = np.unique(cell[order], return_index=True)
    return order, CellHits(occupied, np.append(start, len(cell)).astype(np.int32))


def pad_slots(hits: CellHits, size: int, num_cells: int) -> CellHits:
    """Appends empty slots up to `size`, which must be at least the number of hits."""
    padding = size - len(hits.cell)
    return CellHits(
        np.pad(hits.cell, (0, padding), constant_values=num_cells),
        np.pad(hits.hit_start, (0, padding), mode="edge"),
    )


@partial(jax.jit, static_argnames="capacity")
def connect_cells(
    rows: Rows,
    hits: CellHits,
    slots: Int32[Array | np.ndarray, "2"],
    min_count: Int32[Array | np.ndarray, ""],
    *,
    capacity: int,
) -> ConnectedCells:
    """Reads the rows of C of a range of slots, and finds which entries join two occupied cells.

    Args:
      rows: C.
      hits: the event.
      slots: first slot of receivers, and the slot after the last one.
      min_count: smallest count of an entry that makes edges.
      capacity: room for all entries of these rows.

    Returns:
      The entries.
    """
    num_cells, num_slots = len(rows.row_offsets) - 1, len(hits.cell)
    all_slots = jnp.arange(num_slots, dtype=jnp.int32)
    row_offsets = jnp.asarray(rows.row_offsets)
    row_start = row_offsets.at[hits.cell].get(mode="clip")
    row_length = row_offsets.at[hits.cell + 1].get(mode="clip") - row_start
    in_range = (all_slots >= slots[0]) & (all_slots < slots[1])
    receiver, place, is_entry, is_overflow = _expand(jnp.where(in_range, row_length, 0), capacity)

    entry = jnp.where(is_entry, row_start[receiver] + place, 0)
    count = rows.counts[entry]
    slot_of_cell = jnp.full(num_cells, -1, jnp.int32).at[hits.cell].set(all_slots, mode="drop")
    sender = slot_of_cell[rows.columns[entry]]
    is_kept = is_entry & (sender >= 0) & (count >= min_count)
    sender = jnp.maximum(sender, 0)
    slot_size = jnp.diff(hits.hit_start)
    num_senders = jnp.where(is_kept, slot_size[sender], 0)
    # In floating point, where a sum too large for 32 bits does not wrap into a small one.
    num_edges = num_senders.astype(jnp.float32) * slot_size[receiver].astype(jnp.float32)
    return ConnectedCells(receiver, sender, count, num_senders, is_overflow, num_edges.sum())


@partial(jax.jit, static_argnames="capacity")
def connect_hits(pairs: ConnectedCells, hits: CellHits, *, capacity: int) -> CellEdges:
    """The edges between the hits of connected cells.

    Every cell of receivers has one list of senders, which all its hits share. Two expansions, each
    of lengths into a flat array, make the lists and then the edges; both keep the order, so that
    nothing is sorted.

    Args:
      pairs: from `connect_cells`.
      hits: the event.
      capacity: room for the edges.

    Returns:
      The edges, and whether they are complete.
    """
    num_slots = len(hits.cell)
    # Entry and place of each list's members; no longer than the edges, as no receivers' cell is
    # empty.
    entry, place, _, _ = _expand(pairs.num_senders, capacity)
    member = hits.hit_start[pairs.sender[entry]] + place
    list_length = jax.ops.segment_sum(
        pairs.num_senders, pairs.receiver, num_slots, indices_are_sorted=True
    )
    list_start = jnp.cumsum(list_length) - list_length

    slot_size = jnp.diff(hits.hit_start)
    slots = jnp.arange(num_slots, dtype=jnp.int32)
    slot = jnp.repeat(slots, slot_size, total_repeat_length=num_slots)
    is_hit = slots < hits.hit_start[-1]
    receivers, place, is_edge, is_overflow = _expand(
        jnp.where(is_hit, list_length[slot], 0), capacity
    )
    at = jnp.where(is_edge, list_start[slot[receivers]] + place, 0)
    return CellEdges(
        senders=jnp.where(is_edge, member[at], 0),
        receivers=jnp.where(is_edge, receivers, 0),
        counts=jnp.where(is_edge, pairs.count[entry[at]], 0),
        num_edges=is_edge.sum(dtype=jnp.int32),
        is_overflow=pairs.is_overflow | is_overflow,
    )


def _expand(
    lengths: Int32[Array, " item"], size: int
) -> tuple[Int32[Array, " place"], Int32[Array, " place"], Bool[Array, " place"], Bool[Array, ""]]:
    """Lays out `lengths[k]` places for each item k, one item after the other.

    Returns:
      The item of each place, the place's number within the item, whether the place is taken, and
      whether there are too few places.
    """
    items = jnp.arange(len(lengths), dtype=jnp.int32)
    start = jnp.cumsum(lengths) - lengths
    item = jnp.repeat(items, lengths, total_repeat_length=size)
    places = jnp.arange(size, dtype=jnp.int32)
    total = start[-1] + lengths[-1]
    # The sum in floating point sees totals that wrap around in 32 bits; the exact one all others.
    is_overflow = (total > size) | (lengths.astype(jnp.float32).sum() > 2**30)
    return item, places - start[item], places < total, is_overflow


def bucket_size(size: int) -> int:
    """The bucket of a size, of few: the next of 2^k and 1.5 * 2^k, at least 256."""
    power = 1 << max(8, (max(size, 1) - 1).bit_length())
    return power * 3 // 4 if size <= power * 3 // 4 and power > 256 else power
