"""Host side: how good a candidate graph is, and whether clustering on it can find the particles.

Comparisons with the truth look only at candidates between hits of one particle, a few per cent of a
full event's graph. The other candidates are only counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64
from scipy import sparse
from scipy.sparse import csgraph

from hypertrack_jax.evaluation.edge_metrics import GraphScores, graph_scores
from hypertrack_jax.evaluation.report import EVENT_ID, Row
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.events.topology import edge_labels, require_topology, truth_edges
from hypertrack_jax.reconstruction.candidates import CandidateEdges

_JOINED_BY = {
    "hyper": "all pairs of hits of a particle",
    "eom": "neighbouring hits of a particle",
    "cricket": "hits of a particle up to two steps apart",
}
"""What the true edges of each topology are, in words."""


class ParticleConnectivity(NamedTuple):
    """How well the graph connects each particle that has enough hits."""

    particle: Int64[np.ndarray, " particle"]
    """Index into `Event.particles`, ascending."""
    share: Float64[np.ndarray, " particle"]
    """Hits in the particle's largest connected piece, over all its hits.

    It is 1 / hits if the graph joins no two of them, and 1 if all are connected."""


class GraphQuality(NamedTuple):
    """The candidate graph of one event at one `min_count`.

    A ratio over nothing is None. Without truth, so is everything that needs it.
    """

    min_count: int
    """Smallest C that makes an edge."""
    num_edges: int
    """Directed candidates, self-loops included."""
    mean_degree: float | None
    """Candidates per hit."""
    tpr: float | None
    """True edges among the candidates over all true edges."""
    fpr: float | None
    """False candidates over all ordered pairs of hits that are no true edge."""
    purity: float | None
    """True candidates over all candidates."""
    connected_share: float | None
    """Mean over particles of the share of hits in the largest connected piece."""
    fully_connected: float | None
    """Particles whose hits are all connected over all particles of enough hits."""


class _OwnEdges(NamedTuple):
    """The candidates whose two hits are of one particle."""

    senders: Int32[np.ndarray, " own_edge"]
    receivers: Int32[np.ndarray, " own_edge"]
    counts: Int32[np.ndarray, " own_edge"]


def graph_row(
    event: Event, edges: CandidateEdges, node2node: str, seconds: float | None = None
) -> Row:
    """Sizes and scores of one event's candidate graph, as a row of a report.

    Args:
      event: the event; without truth the scores are None.
      edges: its candidate graph.
      node2node: topology of the true edges, whatever the graph was fitted with.
      seconds: time that it took to make the graph; None leaves it out.

    Returns:
      The row.

    Raises:
      UserError: an unknown `node2node`.
    """
    keep_all = int(edges.counts.min(initial=1))
    (quality,) = min_count_scan(event, edges, node2node, [keep_all])
    row = {
        EVENT_ID: event.event_id,
        "hits": len(event.position),
        "edges": quality.num_edges,
        "degree": quality.mean_degree,
        "VD TPR": quality.tpr,
        "VD FPR": quality.fpr,
        "VD purity": quality.purity,
        "connected share": quality.connected_share,
        "fully connected": quality.fully_connected,
    }
    return row if seconds is None else {**row, "VD ms": 1e3 * seconds}


def min_count_scan(
    event: Event,
    edges: CandidateEdges,
    node2node: str,
    min_counts: Sequence[int],
    min_hits: int = 4,
) -> list[GraphQuality]:
    """The quality at every `min_count`, from the candidates at the smallest of them.

    Args:
      event: the event; without truth only the sizes are known.
      edges: candidates at the smallest of `min_counts` or below.
      node2node: topology of the true edges, whatever the graph was fitted with.
      min_counts: smallest counts that make an edge, in any order.
      min_hits: fewest hits of the particles whose connectivity counts.

    Returns:
      One entry for each of `min_counts`, in their order.

    Raises:
      UserError: an unknown `node2node`.
    """
    require_topology(node2node)
    if not event.has_truth:
        return [_sizes(event, edges, min_count) for min_count in min_counts]
    own = _own_edges(event, edges)
    is_true = edge_labels(event, own.senders, own.receivers, node2node)
    num_truth_edges = len(truth_edges(event, node2node)[0])
    qualities = []
    for min_count in min_counts:
        is_kept = own.counts >= min_count
        num_edges = int(np.count_nonzero(edges.counts >= min_count))
        num_true = int(np.count_nonzero(is_kept & is_true))
        scores = _scores(len(event.position), num_truth_edges, num_edges, num_true)
        connectivity = _connectivity(
            event.hit_particle, own.senders[is_kept], own.receivers[is_kept], min_hits
        )
        qualities.append(_quality(min_count, num_edges, scores, connectivity))
    return qualities


def particle_connectivity(
    event: Event,
    senders: Int[np.ndarray, " edge"],
    receivers: Int[np.ndarray, " edge"],
    min_hits: int = 4,
) -> ParticleConnectivity:
    """The share of each particle's hits that edges among its own hits connect.

    Only if this share is 1 can clustering on the graph find all hits of the particle and no others:
    paths through other hits join more than the particle.

    Args:
      event: an event with truth.
      senders: hit at the start of each edge.
      receivers: hit at its end; one direction of an edge is enough.
      min_hits: fewest hits of a particle that counts.

    Returns:
      The share of every particle with at least `min_hits` hits.
    """
    is_own = edge_labels(event, senders, receivers, "hyper")
    return _connectivity(event.hit_particle, senders[is_own], receivers[is_own], min_hits)


def topology_note(fitted: str, judged: str) -> str:
    """A sentence if graph and truth differ in topology, else an empty string.

    Args:
      fitted: topology of the true edges that C counted.
      judged: topology of the true edges that the graph is compared with.

    Returns:
      The sentence, or an empty string.

    Raises:
      UserError: an unknown topology.
    """
    require_topology(fitted)
    require_topology(judged)
    if fitted == judged:
        return ""
    return (
        f"fitted with {fitted}, judged against {judged}: C counted {_JOINED_BY[fitted]}, but the "
        f"true edges here are {_JOINED_BY[judged]}."
    )


def _own_edges(event: Event, edges: CandidateEdges) -> _OwnEdges:
    # The true edges of `hyper` are all pairs within a particle; other topologies have some of them.
    is_own = edge_labels(event, edges.senders, edges.receivers, "hyper")
    return _OwnEdges(*(part[is_own] for part in edges[:3]))


def _connectivity(
    hit_particle: Int32[np.ndarray, " hit"],
    senders: Int[np.ndarray, " edge"],
    receivers: Int[np.ndarray, " edge"],
    min_hits: int,
) -> ParticleConnectivity:
    """`particle_connectivity` from the edges within particles."""
    num_hits = len(hit_particle)
    joined = np.ones(len(senders), np.bool_)
    graph = sparse.coo_array((joined, (senders, receivers)), shape=(num_hits, num_hits))
    _, piece = csgraph.connected_components(graph, directed=False)
    hits = np.flatnonzero(hit_particle != NOISE)
    particle = hit_particle[hits]
    particle_size = np.bincount(particle)
    largest = np.zeros(len(particle_size), np.int64)
    # All edges are within particles, so no piece has hits of two particles.
    np.maximum.at(largest, particle, np.bincount(piece)[piece[hits]])
    counted = np.flatnonzero(particle_size >= max(min_hits, 1))
    return ParticleConnectivity(counted, largest[counted] / particle_size[counted])


def _scores(num_hits: int, num_truth_edges: int, num_edges: int, num_true: int) -> GraphScores:
    """`graph_scores` from the numbers of candidates and of true ones."""
    label = np.repeat([True, False], [num_true, num_edges - num_true])
    return graph_scores(num_hits, num_truth_edges, label)


def _quality(
    min_count: int, num_edges: int, scores: GraphScores, connectivity: ParticleConnectivity
) -> GraphQuality:
    share = connectivity.share
    return GraphQuality(
        min_count=min_count,
        num_edges=num_edges,
        mean_degree=scores.mean_degree,
        tpr=scores.tpr,
        fpr=scores.fpr,
        purity=scores.purity,
        connected_share=float(share.mean()) if len(share) else None,
        fully_connected=float((share == 1).mean()) if len(share) else None,
    )


def _sizes(event: Event, edges: CandidateEdges, min_count: int) -> GraphQuality:
    """The sizes, which need no truth."""
    num_edges = int(np.count_nonzero(edges.counts >= min_count))
    degree = _scores(len(event.position), 0, num_edges, 0).mean_degree
    return GraphQuality(min_count, num_edges, degree, None, None, None, None, None)
