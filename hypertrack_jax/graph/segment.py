"""Device side: sums, extrema and rows of segments.

A segment is the set of entries that share an id, here mostly the edges of one receiver. Ids are
sorted unless a caller says otherwise: XLA then writes each segment once and in order. Ids outside
`[0, num_segments)`, negative ones included, are dropped, so padding may have such an id.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, Shaped

# Without this jax counts negative indices from the end.
_DROP: Any = {"mode": "drop", "wrap_negative_indices": False}


def segment_sum(
    data: Shaped[Array, "entry ..."],
    segment_ids: Int[Array, " entry"],
    num_segments: int,
    *,
    sorted_ids: bool = True,
) -> Shaped[Array, "segment ..."]:
    """Sum of the entries of each segment; 0 for an empty one."""
    return jax.ops.segment_sum(data, segment_ids, num_segments, indices_are_sorted=sorted_ids)


def add_to_segments(
    total: Shaped[Array, "segment ..."],
    data: Shaped[Array, "entry ..."],
    segment_ids: Int[Array, " entry"],
    *,
    sorted_ids: bool = True,
) -> Shaped[Array, "segment ..."]:
    """`total` plus the sum of the entries of each segment, for data that comes in blocks."""
    return total.at[segment_ids].add(data, indices_are_sorted=sorted_ids, **_DROP)


def raise_segments(
    highest: Shaped[Array, "segment ..."],
    data: Shaped[Array, "entry ..."],
    segment_ids: Int[Array, " entry"],
) -> Shaped[Array, "segment ..."]:
    """The larger of `highest` and the largest entry of each segment, for data in blocks.

    Only segments with entries are touched. A pass over all of them would cost more than a block.
    """
    is_next = jnp.pad(segment_ids[1:] != segment_ids[:-1], (1, 0))
    rank = jnp.cumsum(is_next.astype(jnp.int32))
    place = segment_max(segment_ids, rank, len(segment_ids))
    # Ranks without entries have the lowest integer, which XLA may take for an index inside.
    place = jnp.where(place < 0, len(highest), place)
    largest = segment_max(data, rank, len(data))
    return put_rows(highest, jnp.maximum(highest[place], largest), place)


def segment_max(
    data: Shaped[Array, "entry ..."],
    segment_ids: Int[Array, " entry"],
    num_segments: int,
    *,
    sorted_ids: bool = True,
) -> Shaped[Array, "segment ..."]:
    """Largest entry of each segment; the type's lowest value (-inf for floats) where empty."""
    return jax.ops.segment_max(data, segment_ids, num_segments, indices_are_sorted=sorted_ids)


def segment_min(
    data: Shaped[Array, "entry ..."],
    segment_ids: Int[Array, " entry"],
    num_segments: int,
    *,
    sorted_ids: bool = True,
) -> Shaped[Array, "segment ..."]:
    """Smallest entry of each segment; the type's highest value (inf for floats) where empty."""
    return jax.ops.segment_min(data, segment_ids, num_segments, indices_are_sorted=sorted_ids)


def ordered_rows(
    is_member: Bool[Array, " entry"],
    segment_ids: Int[Array, " entry"],
    num_segments: int,
    capacity: int,
) -> tuple[Int32[Array, "segment capacity"], Int32[Array, " segment"]]:
    """The members of each segment as a row, in their order; ids must be sorted.

    Args:
      is_member: False for entries that stand in no row.
      segment_ids: segment of each entry, rising.
      num_segments: number of rows.
      capacity: length of a row.

    Returns:
      Index of the entry in each place, `len(segment_ids)` in free places; and the number of members
      of each segment, where members past `capacity` are counted but not in the row.
    """
    num_entries = len(segment_ids)
    count = segment_sum(is_member.astype(jnp.int32), segment_ids, num_segments)
    before = jnp.cumsum(count) - count
    place = jnp.cumsum(is_member.astype(jnp.int32)) - 1 - before[segment_ids]
    is_placed = is_member & (place < capacity)
    flat = jnp.where(is_placed, segment_ids * capacity + place, num_segments * capacity)
    rows = jnp.full(num_segments * capacity, num_entries, jnp.int32)
    rows = rows.at[flat].set(jnp.arange(num_entries, dtype=jnp.int32), **_DROP)
    return rows.reshape(num_segments, capacity), count


def rank_in_segment(
    segment_ids: Int[Array, " entry"], num_segments: int
) -> tuple[Int32[Array, " entry"], Int32[Array, " segment"]]:
    """The number of earlier entries in the segment of each entry; ids may have any order.

    Sorts pieces so short that an id and a place fit into 32 bits: XLA on CPU sorts single numbers
    six times as fast as pairs of them (2.7e6 in 0.1 s; jax 0.10.1).

    Args:
      segment_ids: segment of each entry, not negative; ranks of ids from `num_segments` on have no
        meaning.
      num_segments: number of segments.

    Returns:
      The rank of each entry, and the number of entries of each segment.
    """
    num_bits = 31 - num_segments.bit_length()
    size = min(1 << num_bits, max(len(segment_ids), 1))
    missing = -len(segment_ids) % size
    ids = jnp.minimum(segment_ids, num_segments).astype(jnp.uint32)
    ids = jnp.pad(ids, (0, missing), constant_values=num_segments).reshape(-1, size)
    place = jnp.arange(size, dtype=jnp.uint32)

    def of_piece(before, piece):
        key = jnp.sort((piece << num_bits) | place)
        of = (key >> num_bits).astype(jnp.int32)
        is_first = jnp.pad(of[1:] != of[:-1], (1, 0), constant_values=True)
        index = place.astype(jnp.int32)
        in_run = index - jax.lax.cummax(jnp.where(is_first, index, 0))
        at = (key & jnp.uint32((1 << num_bits) - 1)).astype(jnp.int32)
        rank = jnp.zeros(size, jnp.int32).at[at].set(in_run + before[of], unique_indices=True)
        return before.at[of].add(1, indices_are_sorted=True), rank

    count, rank = jax.lax.scan(of_piece, jnp.zeros(num_segments + 1, jnp.int32), ids)
    return rank.reshape(-1)[: len(segment_ids)], count[:num_segments]


def put_columns(
    rows: Shaped[Array, "row column"],
    values: Shaped[Array, "row entry"],
    columns: Int[Array, "row entry"],
) -> Shaped[Array, "row column"]:
    """`rows` with the values at their columns of the same row; columns outside are dropped."""
    return rows.at[jnp.arange(len(rows))[:, None], columns].set(values, **_DROP)


def put_rows(
    rows: Shaped[Array, "row ..."],
    new_rows: Shaped[Array, "entry ..."],
    places: Int[Array, " entry"],
) -> Shaped[Array, "row ..."]:
    """`rows` with `new_rows` at their places; places outside are dropped."""
    return rows.at[places].set(new_rows, **_DROP)
