"""The connectivity matrix C: counted pair by pair, looked up row by row, never dense.

C[u, v] is the number of true edges (i, j) with hit i in cell u and hit j in cell v, both directions
and self-loops included. Counting sorts one event's pairs on the device and merges sorted runs on
the host, where only the upper half of the symmetric matrix is kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, Int64, UInt16
from scipy import sparse

from hypertrack_jax.capacities import capacity_for
from hypertrack_jax.errors import UserError

COUNT_BITS = 16
"""Lowest bits of a packed pair: its count."""
MAX_COUNT = 2**COUNT_BITS - 1
"""Counts saturate here, which keeps them in 16 bits; no look-up needs to tell larger ones apart."""
MAX_CELLS = 2**20
"""Most cells; their pairs take 40 bits, which leaves room for the count."""

MAX_ENTRIES = 2**31 - 2**5
"""Most entries of C: a 32-bit index reaches no further, and a block of the look-up may begin at the
last entry."""

PackedPairs = Int64[np.ndarray, " _pair"]
"""Pairs of cells u <= v with their counts, (u * V + v) << COUNT_BITS | count, ascending.

One array instead of two: it sorts, merges and travels fast. C is symmetric, so half of it will do.
The underscore: arrays of different lengths meet in one call.
"""


class Rows(NamedTuple):
    """C in compressed rows: both halves, or only the upper one, u <= v, where that is said."""

    row_offsets: Int32[Array | np.ndarray, " cell_plus_1"]
    """Row u holds the entries from `row_offsets[u]` to `row_offsets[u + 1]`."""
    columns: Int32[Array | np.ndarray, " entry"]
    """Cell v of each entry, ascending within a row."""
    counts: UInt16[Array | np.ndarray, " entry"]
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
    padding = capacity_for(len(lower)) - len(lower)
    # Keys need 40 bits; 64-bit integers are switched on for this program alone.
    with jax.enable_x64(True):
        pairs, counts, num_pairs = count_keys(
            np.pad(lower, (0, padding)), np.pad(upper, (0, padding)), len(lower), num_cells
        )
        num_pairs = int(num_pairs)
        pairs, counts = np.asarray(pairs)[:num_pairs], np.asarray(counts)[:num_pairs]
    return pack_pairs(pairs, counts)


@jax.jit
def count_keys(
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


def merge_runs(runs: Sequence[PackedPairs], chunk: int = 2**24) -> Iterator[PackedPairs]:
    """Adds the counts of runs that need not fit into memory together.

    Args:
      runs: results of `merge_pairs`, such as files mapped into memory.
      chunk: pairs that are in memory at a time.

    Yields:
      The sum, piece by piece, with ascending pairs.
    """
    done = [0] * len(runs)
    window = max(1, chunk // max(1, len(runs)))
    while any(place < len(run) for place, run in zip(done, runs, strict=True)):
        parts = [run[place : place + window] for place, run in zip(done, runs, strict=True)]
        # Pairs up to the smallest end of a window are complete: no run has more of them.
        ends = [
            int(part[-1]) | MAX_COUNT
            for part, place, run in zip(parts, done, runs, strict=True)
            if place + window < len(run)
        ]
        if ends:
            parts = [part[: np.searchsorted(part, min(ends), side="right")] for part in parts]
        done = [place + len(part) for place, part in zip(done, parts, strict=True)]
        yield merge_pairs(parts)


def upper_rows(pieces: Iterable[PackedPairs], num_cells: int) -> Rows:
    """The rows of the upper half of C from pairs in ascending order.

    Raises:
      UserError: C would have more entries than a 32-bit index reaches.
    """
    row_length = np.zeros(num_cells, np.int64)
    columns, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.uint16)]
    for piece in pieces:
        keys, count = unpack_pairs(piece)
        row, column = np.divmod(keys, num_cells)
        row_length += np.bincount(row, minlength=num_cells)
        columns.append(column.astype(np.int32))
        counts.append(count.astype(np.uint16))
    num_entries = 2 * int(row_length.sum())
    if num_entries > MAX_ENTRIES:
        raise UserError(
            f"C at ncell={num_cells} has about {num_entries} entries, more than {MAX_ENTRIES}; "
            "choose fewer events, fewer cells or a sparser node2node."
        )
    row_offsets = np.append(0, np.cumsum(row_length)).astype(np.int32)
    return Rows(row_offsets, np.concatenate(columns), np.concatenate(counts))


def mirror_rows(upper: Rows) -> Rows:
    """The rows of both halves of C from those of the upper half."""
    num_cells = len(upper.row_offsets) - 1
    half = sparse.csr_array((upper.counts, upper.columns, upper.row_offsets), (num_cells,) * 2)
    mirrored = half.T.tocsr()
    # The diagonal entry is the last of its row here, and must not count twice.
    last = mirrored.indptr[1:] - 1
    rows = np.flatnonzero(np.diff(mirrored.indptr))
    rows = rows[mirrored.indices[last[rows]] == rows]
    mirrored.data[last[rows]] = 0
    full = half + mirrored
    return Rows(
        full.indptr.astype(np.int32, copy=False),
        full.indices.astype(np.int32, copy=False),
        full.data,
    )
