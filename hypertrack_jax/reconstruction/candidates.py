"""Host side: candidate edges of any number, by the program that the reconstruction runs."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32

from hypertrack_jax.capacities import power_above, until_enough
from hypertrack_jax.compilation import forget_programs_if_many
from hypertrack_jax.events.cells import Cells
from hypertrack_jax.networks.cluster_shape import padded_clusters
from hypertrack_jax.networks.edge_filter import FilterWeights, needs_cells
from hypertrack_jax.reconstruction.capacities import (
    LEAST_HITS,
    expected_edges,
    filter_capacities,
    graph_capacities,
    list_capacities,
    require_room,
)
from hypertrack_jax.reconstruction.hits import checked_positions, require_cells
from hypertrack_jax.reconstruction.stages import (
    GraphConstructor,
    PaddedHits,
    candidate_edges,
    filtered_edges,
    raw_pairs,
)
from hypertrack_jax.voxdyn.hit_pairs import PairLists
from hypertrack_jax.voxdyn.model import (
    VoxelDynamics,
    required_count,
    warn_of_outside,
    warn_of_places,
)

LEAST_PAIRS = 65536
"""Least number of raw pairs that the capacities of a filter are chosen for."""


class CandidateEdges(NamedTuple):
    """The event graph before any learning: receivers ascend, senders follow their cells."""

    senders: Int32[np.ndarray, " edge"]
    """Hit at the start of each edge."""
    receivers: Int32[np.ndarray, " edge"]
    """Hit at its end."""
    counts: Int32[np.ndarray, " edge"]
    """C at the cells of both: how often particles made such a pair in training."""
    score: Float32[np.ndarray, " edge"] | None = None
    """The filter's logit, if there is a filter."""


def predict_edges(
    voxdyn: VoxelDynamics,
    position: Float[np.ndarray, "hit 3"],
    min_count: float | int | None = None,
    edge_filter: FilterWeights | None = None,
    cells: Cells | None = None,
) -> CandidateEdges:
    """Joins all hits whose cells C connects, or those that a filter leaves of these pairs.

    The graph is symmetric. Without a filter, hits whose cell C connects with itself have a
    self-loop; a filter leaves none. Hits far outside the space of the training hits have no cell
    and get no edges; a warning says so.

    Args:
      voxdyn: the estimator.
      position: x, y, z of each hit in mm, float32 or float64.
      min_count: smallest C[u, v] that makes edges, or a quantile, see `count_threshold`; None for
        all that the estimator holds.
      edge_filter: the filter of these graphs.
      cells: the clusters of the hits; only a filter that looks at their shape needs them.

    Returns:
      The edges.

    Raises:
      UserError: the positions are not of that shape and type, are masked or not finite; all hits
        are outside the training space; the estimator does not hold counts as small as `min_count`,
        or none as large; the filter needs cells; the graph is too large for the memory.
    """
    constructor = graph_constructor(voxdyn, min_count)
    checked = checked_positions(position)
    num_hits = len(checked)
    if num_hits == 0:
        return CandidateEdges(*(np.zeros(0, np.int32) for _ in range(3)))
    padded = hits_with_room(voxdyn, checked)
    num_places = len(padded.position)
    if edge_filter is None:
        first = graph_capacities(num_places, voxdyn, int(constructor.min_count))
        graph, num_outside = _enough(candidate_edges, constructor, padded, first)
    else:
        has_cells = needs_cells(edge_filter)
        if has_cells:
            clusters = padded_clusters(require_cells(cells), num_places)
            padded = padded._replace(clusters=clusters)
        raw = _raw_pairs(voxdyn, constructor, padded)
        num_raw = power_above(int(raw.lists.num_raw), LEAST_PAIRS)
        of_filter = filter_capacities(num_places, num_raw, "shape" if has_cells else "none")
        graph, num_outside = _enough(filtered_edges, edge_filter, padded, of_filter, raw)
    warn_of_outside(voxdyn, int(num_outside), num_hits)
    num_edges = int(np.asarray(graph.n_edge)[0])
    edges: Any = graph.senders, graph.receivers, graph.edges.count, graph.edges.score
    edges = jax.tree.map(lambda part: np.asarray(part)[:num_edges], edges)
    return CandidateEdges(*edges)


def raw_pairs_of(
    voxdyn: VoxelDynamics, position: Float32[np.ndarray, "hit 3"], min_count: float | int
) -> tuple[PairLists, PaddedHits]:
    """What the filter takes of some hits, and these as they were padded.

    Raises:
      UserError: as `predict_edges`.
    """
    padded = hits_with_room(voxdyn, position)
    return _raw_pairs(voxdyn, graph_constructor(voxdyn, min_count), padded).lists, padded


def _raw_pairs(voxdyn: VoxelDynamics, constructor: GraphConstructor, padded: PaddedHits) -> Any:
    # By what is padded, and in powers of two: training has sectors of all sizes.
    num_places = len(padded.position)
    num_edges = expected_edges(num_places, voxdyn, int(constructor.min_count))
    of_lists = list_capacities(num_places, voxdyn, num_edges, is_sector=True)
    return _enough(raw_pairs, constructor, padded, of_lists)


def graph_constructor(voxdyn: VoxelDynamics, min_count: float | int | None) -> GraphConstructor:
    """The arrays of an estimator, as the programs take them.

    Raises:
      UserError: the estimator does not hold counts as small as `min_count`.
    """
    threshold = np.array(required_count(voxdyn, min_count), np.int32)
    return GraphConstructor(voxdyn.rows, voxdyn.index, voxdyn.space, threshold)


def hits_with_room(voxdyn: VoxelDynamics, position: Float32[np.ndarray, "hit 3"]) -> PaddedHits:
    """The hits in places of a capacity; warns of them as `warn_of_places` does."""
    warn_of_places(voxdyn, position)
    missing = power_above(max(len(position) + 1, LEAST_HITS), 2) - len(position)
    return PaddedHits(np.pad(position, ((0, missing), (0, 0))), np.array(len(position), np.int32))


def _enough(stage: Any, known: Any, hits: PaddedHits, capacities: Any, *made: Any) -> Any:
    """The result of a stage in capacities that suffice."""

    def run(capacities: Any) -> tuple[Any, Any]:
        require_room(capacities, int(hits.num_hits))
        forget_programs_if_many()
        return stage(capacities, known, hits, *made)

    return until_enough(run, capacities)
