"""Device side: the exact nearest centroid of every hit, jitted; host side: the index it searches.

The search goes from cheap to thorough, and its answer is exact because each step proves itself or
hands over to the next, and the last cannot miss:

1. *Descent.* A balanced k-d tree over the centroids leads each hit to a leaf in log2(V) look-ups.
2. *Lists.* Each centroid a has a list of its nearest centroids. With d the smallest distance found
   among the first k of them and R_k the distance of the k-th, every centroid c beyond the k-th has
   |c - x| >= R_k - |a - x|, so that d < R_k - |a - x| proves the answer. A hit without proof goes
   on from the best centroid found, whose list is the sharper, with a larger k (`SCANS`).
3. *Walk.* Hits still without proof walk the bounding boxes of the tree and skip every subtree whose
   box is farther than the best so far. Heap order needs no stack: the node after the subtree of
   node i is (i + 1) >> (trailing zeros of i + 1).

A k-d tree fits where a grid does not: detector layers are thin shells on which the density of
centroids varies by orders of magnitude, and median splits adapt to both. The lists settle all but
about one hit in a hundred with short vectorised scans; the walk makes the rest exact in
logarithmic time, hits far outside the training space included.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, Int64
from scipy.spatial import KDTree

SCANS = (8, 16, 32, 32)
"""Lengths of the lists scanned one after another; measured to be the fastest."""
WALK_SHARE = 1 / 128
"""Share of the hits that walk the tree side by side; about as many as need to."""
WALK_STEPS = 32
"""Steps after which hits that have arrived make room for others."""
MARGIN = 4e-6
"""Relative slack of every bound: several times the rounding error of a float32 distance."""


class VoronoiIndex(NamedTuple):
    """Search index over V centroids; nodes are in heap order, the root is node 1, node 0 unused."""

    centroids: Float32[Array | np.ndarray, "cell 3"]
    """Positions in mm."""
    neighbours: Int32[Array | np.ndarray, "cell list"]
    """Cells nearest to each centroid, itself or an equal one first, by increasing distance."""
    radius: Float32[Array | np.ndarray, "cell scan"]
    """Distance in mm beyond which lie all centroids not in the first `SCANS[scan]` neighbours."""
    split_axis: Int32[Array | np.ndarray, " leaf"]
    """Axis along which an inner node divides; inner nodes are 1 to leaf - 1."""
    split_value: Float32[Array | np.ndarray, " leaf"]
    """Hits below this coordinate (mm) descend to child 2 * node, the others to 2 * node + 1."""
    box: Float32[Array | np.ndarray, "node 6"]
    """Smallest x, y, z and largest x, y, z of the centroids below a node, in mm."""
    leaf_cell: Int32[Array | np.ndarray, "leaf 2"]
    """The two cells of a leaf, twice the same where there is only one."""


def build_index(centroids: Float32[np.ndarray, "cell 3"]) -> VoronoiIndex:
    """Builds the search index on the host.

    Args:
      centroids: positions in mm, at least one. Neighbours that lie near each other in memory make
        the search faster: see `spatial_order`.

    Returns:
      The index, O(V) in memory.
    """
    leaf_cell, split_axis, split_value = _kd_tree(centroids)
    neighbours, radius = neighbour_lists(centroids)
    return VoronoiIndex(
        centroids=centroids,
        neighbours=neighbours,
        radius=radius,
        split_axis=split_axis,
        split_value=split_value,
        box=_node_boxes(centroids, leaf_cell),
        leaf_cell=leaf_cell,
    )


def move_centroids(index: VoronoiIndex, centroids: Float32[np.ndarray, "cell 3"]) -> VoronoiIndex:
    """The index of centroids that have moved a little: the leaves keep their cells.

    Any movement gives an exact index; a large one gives a slow index.
    """
    neighbours, radius = neighbour_lists(centroids)
    return index._replace(
        centroids=centroids,
        neighbours=neighbours,
        radius=radius,
        box=_node_boxes(centroids, np.asarray(index.leaf_cell)),
    )


def spatial_order(centroids: Float32[np.ndarray, "cell 3"]) -> Int64[np.ndarray, " cell"]:
    """An order in which centroids near each other are mostly near each other in memory."""
    return _kd_tree_order(centroids)[0]


def neighbour_lists(
    centroids: Float32[np.ndarray, "cell 3"],
) -> tuple[Int32[np.ndarray, "cell list"], Float32[np.ndarray, "cell scan"]]:
    """The nearest centroids of every centroid and the radii that the lists cover.

    Args:
      centroids: positions in mm.

    Returns:
      `neighbours` and `radius` of `VoronoiIndex`.
    """
    num_cells = len(centroids)
    length = min(SCANS[-1], num_cells)
    distance, cell = map(np.asarray, KDTree(centroids).query(centroids, k=length, workers=-1))
    distance, cell = distance.reshape(num_cells, length), cell.reshape(num_cells, length)
    radius = np.full((num_cells, len(SCANS)), np.inf, np.float32)
    for scan, scanned in enumerate(SCANS):
        if scanned < num_cells:
            radius[:, scan] = distance[:, scanned - 1]
    return cell.astype(np.int32), radius


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
    return nearest_cells(index, position, approximate_cells(index, position))[0]


@jax.jit
def approximate_cells(
    index: VoronoiIndex, position: Float32[Array, "hit 3"]
) -> Int32[Array, " hit"]:
    """A cell near each hit: one in the leaf in whose region of space the hit lies."""
    num_leaves = len(index.leaf_cell)

    def step(_, node):
        axis = _take(index.split_axis, node)
        coordinate = jnp.where(
            axis == 0, position[:, 0], jnp.where(axis == 1, position[:, 1], position[:, 2])
        )
        return 2 * node + (coordinate >= _take(index.split_value, node)).astype(jnp.int32)

    depth = num_leaves.bit_length() - 1
    node = lax.fori_loop(0, depth, step, jnp.ones(len(position), jnp.int32))
    return _take(index.leaf_cell, node - num_leaves, 0)


def nearest_cells(
    index: VoronoiIndex, position: Float32[Array, "hit 3"], start: Int32[Array, " hit"]
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"]]:
    """Nearest cell of every hit and its squared distance in mm^2, given a cell to start from.

    Any start gives the exact answer; a cell near the hit gives it sooner.
    """
    cell, distance2, is_proven = _scan_list(index, position, start, 0)
    for scan in range(1, len(SCANS)):
        # Each scan leaves less than a third to the next, which then costs little.
        size = max(1, len(position) >> (2 * scan - 1))
        cell, distance2, is_proven = _scan_pending(
            index, position, cell, distance2, is_proven, scan, size
        )
    return _walk_pending(index, position, cell, distance2, is_proven)


@partial(jax.jit, static_argnames="tile")
def assign_exhaustive(
    centroids: Float32[Array, "cell 3"], position: Float32[Array, "hit 3"], tile: int = 256
) -> Int32[Array, " hit"]:
    """What `assign_cells` finds, by comparing with every centroid: `tile` hits at a time."""

    def nearest(x: Float32[Array, "3"]) -> Int32[Array, ""]:
        return jnp.argmin(_distance2(x, centroids.T)).astype(jnp.int32)

    return lax.map(nearest, position, batch_size=tile)


def _kd_tree_order(
    centroids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Orders centroids by a balanced k-d tree whose leaves hold one or two of them each.

    Returns:
      order [cell], start of each leaf in it [leaf + 1], axis [leaf] and value [leaf] of the splits.
    """
    num_cells = len(centroids)
    depth = num_cells.bit_length() - 1
    leaf_start = (np.arange(2**depth + 1) * num_cells) >> depth
    order = np.arange(num_cells)
    split_axis = np.zeros(2**depth, np.int32)
    split_value = np.zeros(2**depth, np.float32)
    for level in range(depth):
        start = leaf_start[:: 2 ** (depth - level)]
        ordered = centroids[order]
        extent = np.maximum.reduceat(ordered, start[:-1]) - np.minimum.reduceat(ordered, start[:-1])
        axis = extent.argmax(axis=1)
        node = np.repeat(np.arange(2**level), np.diff(start))
        order = order[np.argsort(_sort_key(node, ordered[np.arange(num_cells), axis[node]]))]
        middle = leaf_start[2 ** (depth - level - 1) :: 2 ** (depth - level)]
        below, above = centroids[order[middle - 1], axis], centroids[order[middle], axis]
        split_axis[2**level : 2 ** (level + 1)] = axis
        split_value[2**level : 2 ** (level + 1)] = 0.5 * (below + above)
    return order, leaf_start, split_axis, split_value


def _kd_tree(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`leaf_cell`, `split_axis` and `split_value` of the index."""
    order, leaf_start, split_axis, split_value = _kd_tree_order(centroids)
    leaf_cell = np.stack([order[leaf_start[:-1]], order[leaf_start[1:] - 1]], axis=1)
    return leaf_cell.astype(np.int32), split_axis, split_value


def _sort_key(node: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One unsigned integer per entry that sorts by node, then by float32 value."""
    bits = value.view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return node.astype(np.uint64) << np.uint64(32) | ascending


def _node_boxes(centroids: np.ndarray, leaf_cell: np.ndarray) -> np.ndarray:
    """Bounding boxes of all nodes from those of the leaves, level by level upwards."""
    lower = [centroids[leaf_cell].min(axis=1)]
    upper = [centroids[leaf_cell].max(axis=1)]
    while len(lower[0]) > 1:
        lower.insert(0, np.minimum(lower[0][0::2], lower[0][1::2]))
        upper.insert(0, np.maximum(upper[0][0::2], upper[0][1::2]))
    unused = np.zeros((1, 6), np.float32)
    return np.vstack([unused, np.hstack([np.vstack(lower), np.vstack(upper)])])


def _distance2(x, c):
    """Squared distance of points whose coordinates are the first axis."""
    return (x[0] - c[0]) ** 2 + (x[1] - c[1]) ** 2 + (x[2] - c[2]) ** 2


def _take(table: Array | np.ndarray, *indices: Array | int) -> Array:
    """Reads `table[indices]`; every index here is in bounds by construction."""
    return jnp.asarray(table).at[indices].get(mode="promise_in_bounds")


def _closer(cell, distance2, candidate, candidate2):
    """The nearer of two cells and its squared distance, the lower index among equals."""
    is_closer = (candidate2 < distance2) | ((candidate2 == distance2) & (candidate < cell))
    return jnp.where(is_closer, candidate, cell), jnp.where(is_closer, candidate2, distance2)


def _scan_list(
    index: VoronoiIndex, position: Float32[Array, "hit 3"], start: Int32[Array, " hit"], scan: int
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"], Bool[Array, " hit"]]:
    """Nearest centroid in the list of `start`, its squared distance, and whether that is proven."""
    length = min(SCANS[scan], index.neighbours.shape[1])
    slot = jnp.arange(length, dtype=jnp.int32)
    candidate = _take(index.neighbours, start[:, None], slot[None, :])
    candidate2 = _centroid_distance2(index, position[:, None, :], candidate)
    cell, distance2 = lax.reduce(
        (candidate, candidate2),
        (jnp.int32(len(index.centroids)), jnp.float32(jnp.inf)),
        lambda best, other: _closer(*best, *other),
        dimensions=(1,),
    )
    start2 = _centroid_distance2(index, position, start)
    reach = (jnp.sqrt(distance2) + jnp.sqrt(start2)) * (1 + MARGIN)
    radius = _take(index.radius, start, scan)
    # An infinite radius: the list holds all centroids.
    return cell, distance2, (reach < radius) | jnp.isinf(radius)


def _centroid_distance2(
    index: VoronoiIndex, position: Float32[Array, "*#hits 3"], cell: Int32[Array, "*hits"]
) -> Float32[Array, "*hits"]:
    """Squared distance, in mm^2, of each hit from the centroid of a cell."""
    x = [position[..., axis] for axis in range(3)]
    return _distance2(x, [_take(index.centroids, cell, axis) for axis in range(3)])


def _scan_pending(index, position, cell, distance2, is_proven, scan, size):
    """Scans the list of the best cell so far for the hits without a proof, `size` at a time."""
    num_hits = len(position)

    def step(state):
        is_pending, cell, distance2, is_proven = state
        hit = jnp.nonzero(is_pending, size=size, fill_value=num_hits)[0]
        near = jnp.minimum(hit, num_hits - 1)
        found = _scan_list(index, _take(position, near), _take(cell, near), scan)
        return (
            is_pending.at[hit].set(False, mode="drop"),
            cell.at[hit].set(found[0], mode="drop"),
            distance2.at[hit].set(found[1], mode="drop"),
            is_proven.at[hit].set(found[2], mode="drop"),
        )

    state = (~is_proven, cell, distance2, is_proven)
    return lax.while_loop(lambda state: state[0].any(), step, state)[1:]


def _walk_pending(index, position, cell, distance2, is_proven):
    """Walks the tree for the hits without a proof, a share of all side by side."""
    num_hits = len(position)
    size = min(num_hits, max(256, int(WALK_SHARE * num_hits)))

    def step(state):
        node, cell, distance2 = state
        hit = jnp.nonzero(node != 1, size=size, fill_value=num_hits)[0]
        near = jnp.minimum(hit, num_hits - 1)
        walked = (_take(node, near), _take(cell, near), _take(distance2, near))
        walk = partial(_walk_step, index, _take(position, near))
        walked = lax.fori_loop(0, WALK_STEPS, lambda _, walked: walk(*walked), walked)
        return tuple(
            old.at[hit].set(new, mode="drop") for old, new in zip(state, walked, strict=True)
        )

    # A walk is over when it comes back to the root, so it starts at the root's first child. Where
    # the root is the only leaf there is nothing to walk: the lists hold all centroids.
    node = jnp.where(is_proven, 1, 2)
    _, cell, distance2 = lax.while_loop(
        lambda state: (state[0] != 1).any(), step, (node, cell, distance2)
    )
    return cell, distance2


def _walk_step(index, position, node, cell, distance2):
    """Visits a node: opens it, or passes to the one after its subtree; the root stays the root."""
    num_leaves = len(index.leaf_cell)
    box = [_take(index.box, node, side) for side in range(6)]
    gap2 = sum(
        jnp.maximum(
            jnp.maximum(box[axis] - position[:, axis], position[:, axis] - box[axis + 3]), 0
        )
        ** 2
        for axis in range(3)
    )
    is_open = (gap2 <= distance2 * (1 + MARGIN)) & (node != 1)
    is_leaf = node >= num_leaves
    leaf = jnp.maximum(node - num_leaves, 0)
    for member in range(2):
        candidate = jnp.where(is_open & is_leaf, _take(index.leaf_cell, leaf, member), cell)
        candidate2 = _centroid_distance2(index, position, candidate)
        cell, distance2 = _closer(cell, distance2, candidate, candidate2)
    after = (node + 1) >> (lax.population_count(node ^ (node + 1)) - 1)
    # The root's successor by this formula is 1 again: 2 >> 1.
    return jnp.where(is_open & ~is_leaf, 2 * node, after), cell, distance2
