"""Host side: the search index over the centroids, built in NumPy; `voronoi` searches it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32, Int64
from scipy.spatial import KDTree

LIST_LENGTH = 32
"""Neighbours in a list, a power of two; shorter lists prove less and are not scanned faster, but
take less time to make."""
FAN_BITS = 3
FAN = 2**FAN_BITS
"""Children of a node that the tree search opens at once: `FAN_BITS` levels of the binary tree."""
MIN_LEAF = 8
"""Fewest cells of a leaf of the search, where the binary tree goes on down to single cells."""


class VoronoiIndex(NamedTuple):
    """Search index over V centroids; nodes are in heap order, the root is node 1, node 0 unused."""

    centroids: Float32[Array | np.ndarray, "cell 3"]
    """Positions in mm."""
    neighbours: Int32[Array | np.ndarray, "cell list"]
    """Cells nearest to each centroid, itself or an equal one among them, by increasing number."""
    neighbour_position: Float32[Array | np.ndarray, "cell 3 list"]
    """Their centroids, in mm, so that a scan reads one stretch of memory."""
    radius: Float32[Array | np.ndarray, " cell"]
    """Distance in mm beyond which lie all centroids that are not in the list."""
    split_axis: Int32[Array | np.ndarray, " node"]
    """Axis along which a node of the binary tree divides."""
    split_value: Float32[Array | np.ndarray, " node"]
    """Hits below this coordinate (mm) descend to child 2 * node, the others to 2 * node + 1."""
    entry_cell: Int32[Array | np.ndarray, " node"]
    """The cell to which the descent leads, for each node of the level below the last split."""
    box: Float32[Array | np.ndarray, "box 6"]
    """Smallest x, y, z and largest x, y, z of the centroids below a node of the search, in mm."""
    leaf_cell: Int32[Array | np.ndarray, "leaf member"]
    """The cells of a leaf of the search, the last one repeated where there are fewer."""


def build_index(
    centroids: Float32[np.ndarray, "cell 3"], list_length: int = LIST_LENGTH
) -> VoronoiIndex:
    """Builds the search index on the host.

    Args:
      centroids: positions in mm, at least one. Neighbours that lie near each other in memory make
        the search faster: see `spatial_order`.
      list_length: neighbours in a list, at most `LIST_LENGTH`.

    Returns:
      The index, O(V) in memory: about 550 bytes for each centroid.
    """
    order, start, split_axis, split_value = _kd_tree(centroids)
    leaf_cell = _leaf_cells(order, start)
    neighbours, radius = neighbour_lists(centroids, list_length)
    return VoronoiIndex(
        centroids=centroids,
        neighbours=neighbours,
        neighbour_position=_list_positions(centroids, neighbours),
        radius=radius,
        split_axis=split_axis,
        split_value=split_value,
        entry_cell=order[start[:-1]].astype(np.int32),
        box=_node_boxes(centroids, leaf_cell),
        leaf_cell=leaf_cell,
    )


def move_centroids(index: VoronoiIndex, centroids: Float32[np.ndarray, "cell 3"]) -> VoronoiIndex:
    """The index of centroids that have moved a little: the leaves keep their cells.

    Any movement gives an exact index; a large one gives a slow index.
    """
    neighbours, radius = neighbour_lists(centroids, index.neighbours.shape[1])
    return index._replace(
        centroids=centroids,
        neighbours=neighbours,
        neighbour_position=_list_positions(centroids, neighbours),
        radius=radius,
        box=_node_boxes(centroids, np.asarray(index.leaf_cell)),
    )


def spatial_order(centroids: Float32[np.ndarray, "cell 3"]) -> Int64[np.ndarray, " cell"]:
    """An order in which centroids near each other are mostly near each other in memory."""
    return _kd_tree(centroids)[0]


def neighbour_lists(
    centroids: Float32[np.ndarray, "cell 3"], list_length: int
) -> tuple[Int32[np.ndarray, "cell list"], Float32[np.ndarray, " cell"]]:
    """The nearest centroids of every centroid and the radius that each list covers.

    Args:
      centroids: positions in mm.
      list_length: neighbours in a list, unless there are fewer centroids.

    Returns:
      `neighbours` and `radius` of `VoronoiIndex`.
    """
    num_cells = len(centroids)
    length = min(list_length, num_cells)
    # Measured to be the fastest for queries at the points of the tree.
    tree = KDTree(centroids, leafsize=20, balanced_tree=False)
    distance, cell = map(np.asarray, tree.query(centroids, k=length, workers=-1))
    distance, cell = distance.reshape(num_cells, length), cell.reshape(num_cells, length)
    # By number, so that the first of equal distances is the lowest cell.
    neighbours = np.sort(cell.astype(np.int32), axis=1)
    # An infinite radius: the list holds all centroids.
    radius = distance[:, -1] if length < num_cells else np.full(num_cells, np.inf)
    return neighbours, radius.astype(np.float32)


def _kd_tree(
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


def _leaf_cells(order: np.ndarray, start: np.ndarray) -> np.ndarray:
    """`leaf_cell` of the index, from the order and the starts of the leaves of `_kd_tree`."""
    num_levels = 0
    while len(order) >> FAN_BITS * (num_levels + 1) >= MIN_LEAF:
        num_levels += 1
    start = start[:: (len(start) - 1) >> FAN_BITS * num_levels]
    member = start[:-1, None] + np.arange(np.diff(start).max())
    return order[np.minimum(member, start[1:, None] - 1)].astype(np.int32)


def _list_positions(centroids: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """`neighbour_position` of the index."""
    return np.stack([centroids[:, axis][neighbours] for axis in range(3)], axis=1)


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
