"""Host side: candidate edges of any number, by the program that the reconstruction runs."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from hypertrack_jax.capacities import capacity_for, until_enough
from hypertrack_jax.reconstruction.capacities import (
    LEAST_HITS,
    GraphCapacities,
    graph_capacities,
    require_room,
)
from hypertrack_jax.reconstruction.hits import checked_positions
from hypertrack_jax.reconstruction.stages import (
    GraphConstructor,
    PaddedHits,
    candidate_edges,
)
from hypertrack_jax.voxdyn.model import (
    VoxelDynamics,
    required_count,
    warn_of_outside,
    warn_of_units,
)


class CandidateEdges(NamedTuple):
    """The event graph before any learning: receivers ascend, senders follow their cells."""

    senders: Int32[np.ndarray, " edge"]
    """Hit at the start of each edge."""
    receivers: Int32[np.ndarray, " edge"]
    """Hit at its end."""
    counts: Int32[np.ndarray, " edge"]
    """C at the cells of both: how often particles made such a pair in training."""


def predict_edges(
    voxdyn: VoxelDynamics,
    position: Float[np.ndarray, "hit 3"],
    min_count: float | int | None = None,
) -> CandidateEdges:
    """Joins all hits whose cells C connects.

    The graph is symmetric and has a self-loop for each hit whose cell C connects with itself. Hits
    far outside the space of the training hits have no cell and get no edges; a warning says so.

    Args:
      voxdyn: the estimator.
      position: x, y, z of each hit in mm, float32 or float64.
      min_count: smallest C[u, v] that makes edges, or a quantile, see `count_threshold`; None for
        all that the estimator holds.

    Returns:
      The edges.

    Raises:
      UserError: the positions are not of that shape and type, are masked or not finite; all hits
        are outside the training space; the estimator does not hold counts as small as `min_count`,
        or none as large; the graph is too large for the memory.
    """
    constructor = graph_constructor(voxdyn, min_count)
    checked = checked_positions(position)
    num_hits = len(checked)
    if num_hits == 0:
        return CandidateEdges(*(np.zeros(0, np.int32) for _ in range(3)))
    padding = capacity_for(num_hits + 1, LEAST_HITS) - num_hits
    warn_of_units(voxdyn, checked)
    padded = np.pad(checked, ((0, padding), (0, 0)))
    hits = PaddedHits(padded, np.array(num_hits, np.int32))
    run = partial(_run, constructor, hits, num_hits)
    first = graph_capacities(num_hits, voxdyn, int(constructor.min_count))
    graph, num_outside = until_enough(run, first)
    warn_of_outside(voxdyn, int(num_outside), num_hits)
    num_edges = int(np.asarray(graph.n_edge)[0])
    edges = graph.senders, graph.receivers, graph.edges.count
    return CandidateEdges(*(np.asarray(part)[:num_edges] for part in edges))


def graph_constructor(voxdyn: VoxelDynamics, min_count: float | int | None) -> GraphConstructor:
    """The arrays of an estimator, as the programs take them.

    Raises:
      UserError: the estimator does not hold counts as small as `min_count`.
    """
    threshold = np.array(required_count(voxdyn, min_count), np.int32)
    return GraphConstructor(voxdyn.rows, voxdyn.index, voxdyn.space, threshold)


def _run(
    constructor: GraphConstructor, hits: PaddedHits, num_hits: int, capacities: GraphCapacities
) -> tuple[Any, Any]:
    require_room(capacities, num_hits)
    return candidate_edges(capacities, constructor, hits)
