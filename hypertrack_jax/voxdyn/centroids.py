"""Device side: K-means centroids of hits by Lloyd's algorithm, every step jitted."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int32

from hypertrack_jax.errors import UserError
from hypertrack_jax.streams import stream
from hypertrack_jax.voxdyn.voronoi import (
    VoronoiIndex,
    approximate_cells,
    build_index,
    move_centroids,
    scan_lists,
    search_tree,
    spatial_order,
)

FIT_LIST_LENGTH = 16
"""Neighbours in the lists of the search, which are made anew in every iteration: half as many as
elsewhere take half the time to make, and hits that start from their former cell need no more."""
TREE_HITS = 2**13
"""Hits that search the tree in one call: one shape, so that it is compiled once."""


class CentroidFit(NamedTuple):
    """Centroids and the course of their fit."""

    centroids: Float32[np.ndarray, "cell 3"]
    """Positions in mm, in an order that keeps neighbours together."""
    objective: Float64[np.ndarray, " iteration"]
    """Mean squared distance of a hit from its nearest centroid before each iteration, in mm^2."""


def fit_centroids(
    position: Float32[np.ndarray, "hit 3"], num_cells: int, num_iterations: int, seed: int
) -> CentroidFit:
    """Fits centroids by full Lloyd iterations with exact assignments.

    Every iteration uses all hits, no subset, and its objective is exact. The fit starts from a
    random sample of the hits, so that the density of centroids follows that of the hits. Every
    iteration begins its search at each hit's previous cell, the first one at an approximate cell.
    A cell without hits moves to a hit drawn in proportion to its squared distance from its
    centroid.

    Args:
      position: hit positions in mm.
      num_cells: number of centroids.
      num_iterations: number of Lloyd iterations.
      seed: decides the sample.

    Returns:
      The centroids and the objective.

    Raises:
      UserError: fewer hits than centroids.
    """
    if num_cells > len(position):
        raise UserError(
            f"ncell={num_cells} is more than the {len(position)} particle hits to fit it on; "
            "choose fewer cells, more events or a larger max_centroid_hits."
        )
    rng = stream("fit centroids", seed)
    centroids = position[rng.choice(len(position), num_cells, replace=False)]
    centroids = centroids[spatial_order(centroids)]
    index = jax.device_put(build_index(centroids, FIT_LIST_LENGTH))
    cell = np.asarray(approximate_cells(index, position))
    # Hits of one cell lie side by side, so their searches read the same few cache lines.
    order = np.argsort(cell, kind="stable")
    hits, cell = jax.device_put((position[order], cell[order]))
    objective = np.zeros(num_iterations)
    for iteration in range(num_iterations):
        if iteration > 0:
            index = jax.device_put(move_centroids(index, centroids))
        cell, distance2 = _reassign(index, hits, cell)
        objective[iteration] = distance2.mean(dtype=np.float64)
        moved, num_hits = map(np.array, lloyd_step(index.centroids, hits, cell))
        centroids = _reseed_empty(moved, num_hits, hits, distance2, rng)
    return CentroidFit(centroids[spatial_order(centroids)], objective)


@jax.jit
def lloyd_step(
    centroids: Float32[Array, "cell 3"],
    position: Float32[Array, "hit 3"],
    cell: Int32[Array, " hit"],
) -> tuple[Float32[Array, "cell 3"], Int32[Array, " cell"]]:
    """Moves each centroid to the mean of its hits; one without hits stays.

    Args:
      centroids: positions in mm.
      position: hit positions in mm.
      cell: the cell of each hit.

    Returns:
      New centroids, and the number of hits in each cell.
    """
    num_cells = len(centroids)
    num_hits = jax.ops.segment_sum(jnp.ones_like(cell), cell, num_cells)
    # Sums of offsets, not of positions: they are small, and so are their rounding errors.
    offset = jax.ops.segment_sum(position - centroids[cell], cell, num_cells)
    mean_offset = offset / jnp.maximum(num_hits, 1).astype(offset.dtype)[:, None]
    return centroids + mean_offset, num_hits


def _reassign(
    index: VoronoiIndex,
    position: Float32[Array, "hit 3"],
    start: Int32[Array | np.ndarray, " hit"],
) -> tuple[Int32[np.ndarray, " hit"], Float32[np.ndarray, " hit"]]:
    """Nearest cell of every hit and its squared distance in mm^2, given the cell before.

    Few hits need the tree. The host picks them, so only they pay for it.
    """
    cell, distance2, is_proven = map(np.array, scan_lists(index, position, start))
    pending, hits = np.flatnonzero(~is_proven), np.asarray(position)

    def search(first: int) -> None:
        hit = pending[first : first + TREE_HITS]
        padded = np.pad(hit, (0, TREE_HITS - len(hit)), mode="edge")
        is_copy = np.arange(TREE_HITS) >= len(hit)
        # From the best cell so far, because its list excludes more cells.
        best, best2, is_proven = scan_lists(index, hits[padded], cell[padded])
        found = search_tree(index, hits[padded], best, best2, is_proven | is_copy)
        cell[hit], distance2[hit] = (np.asarray(part)[: len(hit)] for part in found)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Each call writes to its own hits; `list` raises the errors of the calls.
        list(pool.map(search, range(0, len(pending), TREE_HITS)))
    return cell, distance2


def _reseed_empty(
    centroids: np.ndarray,
    num_hits: np.ndarray,
    position: Array,
    distance2: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Moves centroids without hits to different hits, far ones preferred."""
    empty = np.flatnonzero(num_hits == 0)
    # Hits on their centroid cannot improve. If no other hits are left, cells stay empty.
    empty = empty[: np.count_nonzero(distance2)]
    if len(empty):
        weight = distance2.astype(np.float64)
        chosen = rng.choice(len(weight), len(empty), replace=False, p=weight / weight.sum())
        centroids[empty] = np.asarray(position)[chosen]
    return centroids
