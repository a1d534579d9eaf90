"""Device side: the exact nearest centroid of every hit, jitted.

The search goes from cheap to thorough, and its answer is exact because each step proves itself or
hands over to the next, and the last cannot miss:

1. *Descent.* A balanced k-d tree over the centroids leads each hit to a cell in log2(V) look-ups.
2. *Lists.* Each centroid a has a list of its nearest centroids, whose coordinates lie side by side
   in memory. With d the smallest distance found in the list and R that of its farthest member,
   every centroid c beyond the list has |c - x| >= R - |a - x|, so that d < R - |a - x| proves the
   answer. The list of the descent's cell gives a better one, and the list of that gives the proof.
3. *Tree.* Hits still without proof search the tree `FAN` children at a time and skip every subtree
   whose bounding box is farther than the best so far.

A k-d tree fits where a grid does not: detector layers are thin shells on which the density of
centroids varies by orders of magnitude, and median splits adapt to both. The lists settle the hits
that lie among centroids, nine in ten, in two vectorised scans. The others, mostly noise in regions
that particles seldom cross, are what the tree is for.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from hypertrack_jax import device
from hypertrack_jax.voxdyn.voronoi_index import (
    FAN,
    FAN_BITS,
    LIST_LENGTH,
    VoronoiIndex,
    build_index,
    move_centroids,
    neighbour_lists,
    spatial_order,
)

__all__ = [
    "VoronoiIndex",
    "approximate_cells",
    "assign_cells",
    "assign_exhaustive",
    "build_index",
    "move_centroids",
    "nearest_cells",
    "neighbour_lists",
    "scan_lists",
    "search_tree",
    "spatial_order",
]

OPEN_SHARE = 1 / 32
"""Nodes opened side by side, as a share of the hits."""
MARGIN = 4e-6
"""Relative slack of every bound: several times the rounding error of a float32 distance."""
ROUNDING = 2.0**-21
"""Relative difference between squared distances, of one pair, that were computed in two ways: with
and without instructions that multiply and add. A compiler may compute a value twice and so choose
for each of its uses."""


@jax.jit
def assign_cells(index: VoronoiIndex, position: Float32[Array, "hit 3"]) -> Int32[Array, " hit"]:
    """Exact cell of every hit: its nearest centroid, the lowest index among equals.

    Distances are float32 sums of (x - c)^2, not the expanded form, which cancels. Exact means that
    no centroid is nearer by more than the rounding of that sum.

    Args:
      index: from `build_index`.
      position: hit positions in mm.

    Returns:
      Index of the nearest centroid per hit.
    """
    num_hits = len(position)
    chunk = min(num_hits, device.blocks().located_hits)
    num_chunks = -(-num_hits // chunk)
    copies = jnp.broadcast_to(position[-1:], (num_chunks * chunk - num_hits, 3))
    chunks = jnp.concatenate([position, copies]).reshape(num_chunks, chunk, 3)
    scanned = lax.map(partial(_descend_and_scan, index), chunks)
    scanned = [part.reshape(-1)[:num_hits] for part in scanned]
    return search_tree(index, position, *scanned)[0]


@jax.jit
def approximate_cells(
    index: VoronoiIndex, position: Float32[Array, "hit 3"]
) -> Int32[Array, " hit"]:
    """A cell near each hit: one on the same side of all splits of the tree."""
    num_entries = len(index.entry_cell)

    def step(_, node):
        axis = _take(index.split_axis, node)
        coordinate = jnp.where(
            axis == 0, position[:, 0], jnp.where(axis == 1, position[:, 1], position[:, 2])
        )
        return 2 * node + (coordinate >= _take(index.split_value, node)).astype(jnp.int32)

    depth = num_entries.bit_length() - 1
    node = lax.fori_loop(0, depth, step, jnp.ones(len(position), jnp.int32))
    return _take(index.entry_cell, node - num_entries)


def nearest_cells(
    index: VoronoiIndex, position: Float32[Array, "hit 3"], start: Int32[Array, " hit"]
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"]]:
    """Nearest cell of every hit and its squared distance in mm^2, given a cell to start from.

    Any start gives the exact answer; a cell near the hit gives it sooner.
    """
    return search_tree(index, position, *scan_lists(index, position, start))


@jax.jit
def scan_lists(
    index: VoronoiIndex, position: Float32[Array, "hit 3"], start: Int32[Array, " hit"]
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"], Bool[Array, " hit"]]:
    """Looks for the nearest cell of every hit in the list of a cell to start from.

    Args:
      index: from `build_index`.
      position: hit positions in mm.
      start: a cell for each hit; the nearer, the more is proven.

    Returns:
      The nearest cell in the list, its squared distance in mm^2, and whether no other is nearer.
    """
    slot = _nearest_slot(index, position, start)
    cell = _listed_cell(index, start, slot)
    distance2 = _centroid_distance2(index, position, cell)
    # Behind the barrier, or the compiler makes an array of all distances for both minima to read.
    least2 = _distance_bits(index, *lax.optimization_barrier((position, start))).min(axis=1)
    is_least = lax.bitcast_convert_type(distance2, jnp.int32) <= least2
    start2 = _centroid_distance2(index, position, start)
    reach = (jnp.sqrt(distance2) + jnp.sqrt(start2)) * (1 + MARGIN)
    radius = _take(index.radius, start)
    return cell, distance2, is_least & ((reach < radius) | jnp.isinf(radius))


@jax.jit
def search_tree(
    index: VoronoiIndex,
    position: Float32[Array, "hit 3"],
    cell: Int32[Array, " hit"],
    distance2: Float32[Array, " hit"],
    is_proven: Bool[Array, " hit"],
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"]]:
    """Improves the cells of the hits without a proof until no box holds a nearer centroid.

    Args:
      index: from `build_index`.
      position: hit positions in mm.
      cell: a cell for each hit, as from `scan_lists`.
      distance2: its squared distance in mm^2.
      is_proven: hits whose cell is known to be the nearest.

    Returns:
      The nearest cell of every hit and its squared distance in mm^2.
    """
    num_hits = len(position)
    num_open = min(num_hits, max(256, int(OPEN_SHARE * num_hits)))
    # The entries pushed by one step descend from those they replace. So the stack is a pile of at
    # most one such block for each level, and a last one may be written that has no entries.
    room = (_num_levels(index) + 1) * FAN * num_open
    hit, size = _listed(~is_proven, num_hits)
    search = _Search(
        hit=jnp.concatenate([hit, jnp.zeros(room, jnp.int32)]),
        node=jnp.ones(num_hits + room, jnp.int32),
        size=size,
        cell=cell,
        distance2=distance2,
    )
    search = _enter_leaves(index, position, num_open, search)
    step = partial(_open_nodes, index, position, num_open)
    search = lax.while_loop(lambda search: search.size > 0, step, search)
    return search.cell, search.distance2


@partial(jax.jit, static_argnames="tile")
def assign_exhaustive(
    centroids: Float32[Array, "cell 3"], position: Float32[Array, "hit 3"], tile: int = 256
) -> Int32[Array, " hit"]:
    """What `assign_cells` finds, by comparing with every centroid: `tile` hits at a time."""

    def nearest(x: Float32[Array, "3"]) -> Int32[Array, ""]:
        return jnp.argmin(_distance2(x, centroids.T)).astype(jnp.int32)

    return lax.map(nearest, position, batch_size=tile)


def _distance2(x, c):
    """Squared distance of points whose coordinates are the first axis."""
    return (x[0] - c[0]) ** 2 + (x[1] - c[1]) ** 2 + (x[2] - c[2]) ** 2


def _take(table: Array | np.ndarray, *indices: Array | int) -> Array:
    """Reads `table[indices]`; every index here is in bounds by construction."""
    return jnp.asarray(table).at[indices].get(mode="promise_in_bounds")


def _descend_and_scan(
    index: VoronoiIndex, position: Float32[Array, "hit 3"]
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"], Bool[Array, " hit"]]:
    """What `scan_lists` gives, from the best start that the descent and one more list find."""
    start = approximate_cells(index, position)
    start = _listed_cell(index, start, _nearest_slot(index, position, start))
    return scan_lists(index, position, start)


def _distance_bits(
    index: VoronoiIndex, position: Float32[Array, "hit 3"], start: Int32[Array, " hit"]
) -> Int32[Array, "hit list"]:
    """Squared distances of each hit from the list of a cell, as integers in the same order."""
    listed = _take(index.neighbour_position, start)
    distance2 = _distance2(position.T[:, :, None], jnp.moveaxis(listed, 1, 0))
    return lax.bitcast_convert_type(distance2, jnp.int32)


def _nearest_slot(
    index: VoronoiIndex, position: Float32[Array, "hit 3"], start: Int32[Array, " hit"]
) -> Int32[Array, " hit"]:
    """Slot of the nearest centroid in a cell's list, or of one farther by less than 4e-6 of d^2.

    The slot takes the place of the lowest bits of the distance, and one minimum of integers finds
    both. An argmin of pairs takes ten times as long, as it is not vectorised.
    """
    bits = _distance_bits(index, position, start)
    slot = jnp.arange(bits.shape[1], dtype=jnp.int32)[None, :]
    return (bits & -LIST_LENGTH | slot).min(axis=1) & (LIST_LENGTH - 1)


def _listed_cell(
    index: VoronoiIndex, start: Int32[Array, " hit"], slot: Int32[Array, " hit"]
) -> Int32[Array, " hit"]:
    """The cell in a slot of the list of `start`."""
    length = index.neighbours.shape[1]
    return _take(jnp.reshape(index.neighbours, -1), start * length + slot)


def _centroid_distance2(
    index: VoronoiIndex, position: Float32[Array, "*#hits 3"], cell: Int32[Array, "*hits"]
) -> Float32[Array, "*hits"]:
    """Squared distance, in mm^2, of each hit from the centroid of a cell."""
    # Whole rows: an index for each coordinate would cost more than reading it.
    offset = position - _take(index.centroids, cell)
    return offset[..., 0] ** 2 + offset[..., 1] ** 2 + offset[..., 2] ** 2


class _Search(NamedTuple):
    """State of the tree search: a stack of (hit, node) still to open, and the best so far."""

    hit: Int32[Array, " entry"]
    node: Int32[Array, " entry"]
    size: Int32[Array, ""]
    cell: Int32[Array, " hit"]
    distance2: Float32[Array, " hit"]


def _num_levels(index: VoronoiIndex) -> int:
    """Levels of the search below the root."""
    return (len(index.leaf_cell).bit_length() - 1) // FAN_BITS


def _enter_leaves(index, position, num_open: int, search: _Search) -> _Search:
    """Compares each hit on the stack with one leaf, found by way of the nearest boxes.

    The bound that this gives spares the search most of the nodes near hits far from all centroids.
    """

    def step(state):
        first, cell, distance2 = state
        hit = lax.dynamic_slice(search.hit, (first,), (num_open,))
        near, node = _take(position, hit), jnp.ones(num_open, jnp.int32)
        for _ in range(_num_levels(index)):
            child = _children(node)
            gap_bits = lax.bitcast_convert_type(_gap2(near, _take(index.box, child)), jnp.int32)
            slot = jnp.arange(FAN, dtype=jnp.int32)[None, :]
            node = child[:, 0] + ((gap_bits & -FAN | slot).min(axis=1) & (FAN - 1))
        is_entry = first + jnp.arange(num_open, dtype=jnp.int32) < search.size
        best = _compare_leaves(index, near, hit, node, is_entry, cell, distance2)
        return first + num_open, *best

    state = (jnp.int32(0), search.cell, search.distance2)
    _, cell, distance2 = lax.while_loop(lambda state: state[0] < search.size, step, state)
    return search._replace(cell=cell, distance2=distance2)


def _open_nodes(index, position, num_open: int, search: _Search) -> _Search:
    """Takes the topmost nodes off the stack: compares with leaves, pushes the others' children."""
    first = jnp.maximum(search.size - num_open, 0)
    is_entry = jnp.arange(num_open, dtype=jnp.int32) < search.size - first
    hit, node = (
        lax.dynamic_slice(stack, (first,), (num_open,)) for stack in (search.hit, search.node)
    )
    is_leaf = node >= len(index.leaf_cell)
    near = _take(position, hit)
    cell, distance2 = _compare_leaves(
        index, near, hit, node, is_entry & is_leaf, search.cell, search.distance2
    )
    child = _children(jnp.where(is_leaf, 0, node))
    is_near = _gap2(near, _take(index.box, child)) <= (
        _take(distance2, hit)[:, None] * (1 + MARGIN)
    )
    is_open = is_near & (is_entry & ~is_leaf)[:, None]
    entry, num_entries = _listed(is_open.reshape(-1), FAN * num_open)
    return _Search(
        hit=lax.dynamic_update_slice(search.hit, _take(hit, entry // FAN), (first,)),
        node=lax.dynamic_update_slice(search.node, _take(child.reshape(-1), entry), (first,)),
        size=first + num_entries,
        cell=cell,
        distance2=distance2,
    )


def _listed(
    is_member: Bool[Array, " entry"], capacity: int
) -> tuple[Int32[Array, " member"], Int32[Array, ""]]:
    """Indices of the members, behind them any; and their number.

    Both come from one sum. Counted apart, the members could be compared and rounded once for each,
    and the number would leave one out.
    """
    rank = jnp.cumsum(is_member, dtype=jnp.int32)
    # In front of member j lie all entries whose rank is at most j.
    index = jnp.cumsum(jnp.bincount(rank, length=capacity), dtype=jnp.int32)
    return jnp.minimum(index, len(is_member) - 1), rank[-1]


def _children(node: Int32[Array, " entry"]) -> Int32[Array, "entry child"]:
    """The nodes `FAN_BITS` levels below."""
    return FAN * node[:, None] + jnp.arange(FAN, dtype=jnp.int32)[None, :]


def _gap2(
    position: Float32[Array, "entry 3"], box: Float32[Array, "entry child 6"]
) -> Float32[Array, "entry child"]:
    """Squared distance, in mm^2, of each hit from its boxes, zero inside."""
    x = position[:, None, :]
    gap = jnp.maximum(jnp.maximum(box[..., :3] - x, x - box[..., 3:]), 0)
    return gap[..., 0] ** 2 + gap[..., 1] ** 2 + gap[..., 2] ** 2


def _compare_leaves(
    index, position, hit, node, is_leaf, cell, distance2
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"]]:
    """Cells and squared distances of all hits after comparison with the centroids of the leaves.

    Several leaves may belong to one hit: the nearest centroid wins, the lowest index among those
    that are as near but for the rounding.
    """
    num_hits, num_cells = len(cell), len(index.centroids)
    member = _take(index.leaf_cell, jnp.maximum(node - len(index.leaf_cell), 0))
    member2 = _centroid_distance2(index, position[:, None, :], member)
    found2 = member2.min(axis=1)
    is_found = member2 <= found2[:, None] * (1 + ROUNDING)
    found = jnp.where(is_found, member, num_cells).min(axis=1)

    best2 = distance2.at[jnp.where(is_leaf, hit, num_hits)].min(found2, mode="drop")
    is_closer = is_leaf & (_take(best2, hit) < _take(distance2, hit))
    cell = cell.at[jnp.where(is_closer, hit, num_hits)].set(num_cells, mode="drop")
    is_best = is_leaf & (found2 <= _take(best2, hit) * (1 + ROUNDING))
    cell = cell.at[jnp.where(is_best, hit, num_hits)].min(found, mode="drop")
    return cell, best2
