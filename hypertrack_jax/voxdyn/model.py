"""Host side: the Voxel-Dynamics estimator, from hits to candidate edges."""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Float64, Int32, Int64

from hypertrack_jax.capacities import capacity_for
from hypertrack_jax.memory import require_memory
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT, Rows
from hypertrack_jax.voxdyn.lookup import (
    connect_hits,
    count_blocks,
    find_connected,
    group_hits,
    list_senders,
)
from hypertrack_jax.voxdyn.voronoi import VoronoiIndex, assign_cells, build_index

MAX_EDGES = 2**22
"""Edges made by one call of the last program, which bounds its memory; one hit may exceed it."""
SHARED_HITS = 8192
"""Hits that one core assigns in one call, of an event that has more."""
SPACE_SLACK = 0.25
"""How far beyond the training hits a hit may lie, as a fraction of their extent."""
_BYTES_PER_EDGE = 24
"""Memory that making an edge takes at most: the edge itself, and its share of the sender lists."""


class VoxelDynamics(NamedTuple):
    """A fitted graph constructor: cells of space and which of them particles connect."""

    node2node: str
    """Topology of the true edges that were counted."""
    space: Float32[np.ndarray, "2 3"]
    """Smallest and largest x, y, z of the hits that the centroids were fitted to, in mm."""
    num_events: int
    """Events counted."""
    objective: Float64[np.ndarray, " iteration"]
    """Mean squared distance of hit and centroid before each iteration of the fit, in mm^2."""
    histogram: Int64[np.ndarray, " count"]
    """Number of pairs of cells u <= v with each count, before any were left out."""
    min_count: int
    """Smallest count that `rows` holds."""
    rows: Rows
    """C, both halves."""
    index: VoronoiIndex
    """Search index over the centroids."""

    @property
    def centroids(self) -> Float32[Array | np.ndarray, "cell 3"]:
        """Cell centres in mm."""
        return self.index.centroids

    @property
    def num_cells(self) -> int:
        """V."""
        return len(self.index.centroids)


class CandidateEdges(NamedTuple):
    """The event graph before any learning: receivers ascend, senders follow their cells."""

    senders: Int32[np.ndarray, " edge"]
    """Hit at the start of each edge."""
    receivers: Int32[np.ndarray, " edge"]
    """Hit at its end."""
    counts: Int32[np.ndarray, " edge"]
    """C at the cells of both: how often particles made such a pair in training."""


def make_voxdyn(
    node2node: str,
    centroids: Float32[np.ndarray, "cell 3"],
    rows: Rows,
    *,
    space: Float32[np.ndarray, "2 3"],
    num_events: int,
    objective: Float64[np.ndarray, " iteration"],
    histogram: Int64[np.ndarray, " count"],
    min_count: int = 1,
) -> VoxelDynamics:
    """An estimator on the device from its centroids and its C; the search index is made here.

    Args:
      node2node: topology of the true edges.
      centroids: positions in mm.
      rows: C, both halves.
      space: smallest and largest coordinates of the training hits, in mm.
      num_events: events counted.
      objective: of the centroid fit, in mm^2.
      histogram: number of pairs of cells u <= v with each count, before any were left out.
      min_count: smallest count in `rows`.

    Returns:
      The estimator.
    """
    return VoxelDynamics(
        node2node=node2node,
        space=space,
        num_events=num_events,
        objective=objective,
        histogram=histogram,
        min_count=min_count,
        rows=_to_device(rows),
        index=_to_device(build_index(centroids)),
    )


def count_threshold(histogram: Int64[np.ndarray, " count"], min_count: float | int) -> int:
    """The smallest count that makes edges.

    Args:
      histogram: number of pairs of cells with each count.
      min_count: that count itself, from 1 on; or, between 0 and 1, a quantile: the rarest pairs of
        cells are left out as long as they hold no more than this share of all pairs counted.

    Returns:
      The count.

    Raises:
      ValueError: neither a count that C can hold nor a quantile.
    """
    require_min_count(min_count)
    if min_count < 1:
        pairs = np.cumsum(histogram * np.arange(len(histogram)))
        return max(1, int(np.searchsorted(pairs, min_count * pairs[-1:].sum(), side="right")))
    return int(min_count)


def require_min_count(min_count: float | int) -> None:
    """Raises `ValueError` unless `min_count` is a count that C can hold, or a quantile."""
    is_count = 1 <= min_count <= MAX_COUNT and min_count == int(min_count)
    if not (is_count or 0 < min_count < 1):
        raise ValueError(
            f"--min_count={min_count}: expected a whole number from 1 to {MAX_COUNT}, at which "
            "counts saturate, or a quantile between 0 and 1."
        )


def required_count(vd: VoxelDynamics, min_count: float | int | None) -> int:
    """`count_threshold` of an estimator; None gives the smallest count that it holds.

    Raises:
      ValueError: the estimator does not hold counts that small.
    """
    threshold = vd.min_count if min_count is None else count_threshold(vd.histogram, min_count)
    if threshold < vd.min_count:
        raise ValueError(
            f"min_count={min_count} is asked for, but this estimator was loaded without counts "
            f"below {vd.min_count}; load it with the smaller min_count."
        )
    return threshold


def predict_edges(
    vd: VoxelDynamics, position: Float32[np.ndarray, "hit 3"], min_count: float | int | None = None
) -> CandidateEdges:
    """Joins all hits whose cells C connects.

    The graph is symmetric and has a self-loop for each hit whose cell C connects with itself. Hits
    far outside the space of the training hits have no cell and get no edges; a warning says so.

    Args:
      vd: the estimator.
      position: hit positions in mm.
      min_count: smallest C[u, v] that makes edges, or a quantile, see `count_threshold`; None for
        all that the estimator holds.

    Returns:
      The edges.

    Raises:
      ValueError: the estimator does not hold counts as small as `min_count`; all hits are outside
        the training space; the graph is too large for the memory.
    """
    threshold = required_count(vd, min_count)
    if len(position) == 0 or len(vd.rows.columns) == 0:
        return CandidateEdges(*(np.zeros(0, np.int32) for _ in range(3)))
    cell = hit_cells(vd, position)
    padding = capacity_for(len(cell) + 1) - len(cell)
    cells = group_hits(np.pad(cell, (0, padding), constant_values=vd.num_cells), vd.num_cells)
    connected = find_connected(
        vd.rows,
        cells,
        np.int32(threshold),
        capacity=capacity_for(count_blocks(_row_lengths(vd.rows, np.asarray(cells.cell)))),
    )
    list_length = np.asarray(connected.list_length)
    degree = list_length[np.asarray(cells.hit_slot)[: len(cell)]].astype(np.int64)
    num_senders, num_edges = int(list_length.sum(dtype=np.int64)), int(degree.sum())
    what = f"a graph of {num_edges} edges between {len(position)} hits"
    remedy = "a larger min_count, more cells or fewer hits"
    require_memory(_BYTES_PER_EDGE * num_edges, what, remedy)
    if num_senders > np.iinfo(np.int32).max // 2:
        raise ValueError(f"{what} is more than 32-bit indices reach; choose {remedy}.")
    lists = list_senders(vd.rows, cells, connected, capacity=capacity_for(num_senders))
    edges = CandidateEdges(*(np.empty(num_edges, np.int32) for _ in range(3)))
    done = 0
    for first, last, size in _hit_ranges(degree):
        made = connect_hits(
            cells,
            lists,
            connected.list_length,
            np.array([first, last], np.int32),
            capacity=capacity_for(size),
        )
        if made.is_overflow:
            raise ValueError(f"{what}: a capacity was too small, which is a defect; report it.")
        for whole, part in zip(edges, made, strict=False):
            whole[done : done + size] = np.asarray(part)[:size]
        done += size
    return edges


def hit_cells(
    vd: VoxelDynamics, position: Float32[np.ndarray, "hit 3"]
) -> Int32[np.ndarray, " hit"]:
    """The cell of each hit; V for one that lies outside the training space.

    Warns of such hits.

    Raises:
      ValueError: all hits lie outside.
    """
    inside = is_inside(vd.space, position)
    cell = assign_hits(vd.index, position)
    warn_of_outside(vd, len(position) - int(np.count_nonzero(inside)), len(position))
    return np.where(inside, cell, np.int32(vd.num_cells))


def is_inside(
    space: Float32[Array | np.ndarray, "2 3"], position: Float32[Array | np.ndarray, "hit 3"]
) -> Bool[Array | np.ndarray, " hit"]:
    """Whether each hit lies in the space of the training hits, or not far outside."""
    slack = SPACE_SLACK * (space[1] - space[0])
    lower, upper = (space[0] - slack)[None, :], (space[1] + slack)[None, :]
    is_within: Any = (position >= lower) & (position <= upper)
    return is_within.all(axis=1)


def warn_of_outside(vd: VoxelDynamics, num_outside: int, num_hits: int) -> None:
    """Warns of hits outside the training space.

    Raises:
      ValueError: all hits lie outside.
    """
    if not num_outside:
        return
    message = (
        f"{num_outside} of {num_hits} hits lie outside the space of the training hits, "
        f"{vd.space[0].tolist()} to {vd.space[1].tolist()} mm"
    )
    if num_outside == num_hits:
        raise ValueError(
            f"{message}; give positions in mm, or fit Voxel-Dynamics to this detector."
        )
    # The caller of what the user called, by way of `hit_cells` or the reconstructor.
    warnings.warn(f"{message}, and get no edges.", stacklevel=4)


def assign_hits(
    index: VoronoiIndex, position: Float32[np.ndarray, "hit 3"]
) -> Int32[np.ndarray, " hit"]:
    """`assign_cells` of any number of hits; on a CPU, all cores share those of a large event.

    Args:
      index: from `build_index`, on the device.
      position: hit positions in mm, at least one.

    Returns:
      Index of the nearest centroid per hit.
    """
    if len(position) <= SHARED_HITS or jax.default_backend() != "cpu":
        return np.asarray(assign_cells(index, pad_hits(position)))[: len(position)]
    num_pieces = -(-len(position) // SHARED_HITS)
    padding = num_pieces * SHARED_HITS - len(position)
    pieces = np.pad(position, ((0, padding), (0, 0)), mode="edge").reshape(-1, SHARED_HITS, 3)
    # The tree search is one loop after another, which XLA runs on one core; its calls do not
    # hold the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cells = pool.map(lambda piece: np.asarray(assign_cells(index, piece)), pieces)
        return np.concatenate(list(cells))[: len(position)]


def pad_hits(position: Float32[np.ndarray, "hit 3"]) -> Float32[np.ndarray, "padded 3"]:
    """Repeats the last hit up to a bucket size; copies are as quick to assign as real hits."""
    num_hits = len(position)
    return np.pad(position, ((0, capacity_for(num_hits) - num_hits), (0, 0)), mode="edge")


def _row_lengths(rows: Rows, cell: Array | np.ndarray) -> Int32[np.ndarray, " slot"]:
    """Lengths of the rows of these cells, 0 for V."""
    offsets = np.asarray(rows.row_offsets)
    return offsets[np.minimum(cell + 1, len(offsets) - 1)] - offsets[cell]


def _hit_ranges(degree: Int64[np.ndarray, " hit"]) -> Iterator[tuple[int, int, int]]:
    """Cuts the hits into ranges with at most `MAX_EDGES` edges, or else one hit each.

    Yields:
      First hit, the hit after the last, and the number of edges.
    """
    ends = np.cumsum(degree)
    first, done = 0, 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, done + MAX_EDGES, side="right")))
        yield first, last, int(ends[last - 1]) - done
        first, done = last, int(ends[last - 1])


def _to_device(tree):
    return jax.tree.map(jnp.asarray, tree)
