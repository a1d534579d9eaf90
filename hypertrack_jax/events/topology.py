"""Host side: which pairs of hits are true edges.

The edge set A is directed and symmetric, has a self-loop for every hit of a particle, and none for
noise. All functions work on whole events at once, sparse, without a loop over particles.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64
from scipy import sparse
from scipy.sparse import csgraph

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE, Event

TOPOLOGIES = ("hyper", "eom", "cricket")
"""The choices of `node2node`."""

EdgeEnds = tuple[Int32[np.ndarray, " edge"], Int32[np.ndarray, " edge"]]
"""Senders and receivers."""


def truth_edges(event: Event, node2node: str) -> EdgeEnds:
    """The true edges of an event.

    - `hyper`: all ordered pairs of hits of one particle.
    - `eom`: the Euclidean minimum spanning tree of each particle's hits, both directions.
    - `cricket`: `eom`, and hits two steps apart on that tree.

    Two deviations from the PyTorch program: it finds the two steps of `cricket` by pairing
    consecutive entries of the sorted edge list, which goes wrong where a tree branches, and it cuts
    particles at 30 hits; we keep all.

    Args:
      event: the event; without truth it has no edges.
      node2node: one of `TOPOLOGIES`.

    Returns:
      Senders and receivers, sorted by (receiver, sender).

    Raises:
      UserError: an unknown `node2node`.
    """
    require_topology(node2node)
    senders, receivers = _same_particle_edges(event.hit_particle)
    if node2node == "hyper":
        return senders, receivers
    num_hits = len(event.position)
    lower, upper = _spanning_trees(event.position.astype(np.float64), senders, receivers)
    loops = np.flatnonzero(event.hit_particle != NOISE)
    senders = np.concatenate([lower, upper, loops])
    receivers = np.concatenate([upper, lower, loops])
    if node2node == "cricket":
        senders, receivers = _two_steps(senders, receivers, num_hits)
    key = np.sort(_edge_key(senders, receivers, num_hits))
    return (key % num_hits).astype(np.int32), (key // num_hits).astype(np.int32)


def edge_labels(
    event: Event,
    senders: Int[np.ndarray, " edge"],
    receivers: Int[np.ndarray, " edge"],
    node2node: str,
) -> Bool[np.ndarray, " edge"]:
    """Whether each of the given directed edges is a true one.

    Args:
      event: an event with truth.
      senders: hit index at the start of each edge.
      receivers: hit index at its end.
      node2node: one of `TOPOLOGIES`.

    Returns:
      True where the edge is in the set that `truth_edges` returns.

    Raises:
      UserError: an unknown `node2node`.
    """
    if node2node == "hyper":
        particle = event.hit_particle[receivers]
        return (particle == event.hit_particle[senders]) & (particle != NOISE)
    num_hits = len(event.position)
    true_key = _edge_key(*truth_edges(event, node2node), num_hits)
    key = _edge_key(senders, receivers, num_hits)
    # Keys beyond the last true one find the appended -1, which is no key.
    return np.append(true_key, -1)[np.searchsorted(true_key, key)] == key


def require_topology(node2node: str) -> None:
    """Raises `UserError` unless `node2node` is one of `TOPOLOGIES`."""
    if node2node not in TOPOLOGIES:
        raise UserError(f"node2node={node2node} is unknown; choose {', '.join(TOPOLOGIES)}.")


def _edge_key(
    senders: Int[np.ndarray, " edge"], receivers: Int[np.ndarray, " edge"], num_hits: int
) -> Int64[np.ndarray, " edge"]:
    """One number per edge, in the order of (receiver, sender)."""
    return receivers.astype(np.int64) * num_hits + senders


def _same_particle_edges(hit_particle: Int32[np.ndarray, " hit"]) -> EdgeEnds:
    """All pairs within particles; receivers ascend, and so do the senders of each."""
    hits = np.flatnonzero(hit_particle != NOISE).astype(np.int32)
    particle = hit_particle[hits]
    by_particle = hits[np.argsort(particle, kind="stable")]
    particle_size = np.bincount(particle)
    particle_start = np.cumsum(particle_size) - particle_size
    degree = particle_size[particle]
    edge_start = np.cumsum(degree) - degree
    # Edge e of a receiver whose edges begin at s takes the (e - s)-th hit of its particle.
    place = np.repeat(particle_start[particle] - edge_start, degree) + np.arange(degree.sum())
    return by_particle[place], np.repeat(hits, degree)


def _spanning_trees(
    position: Float64[np.ndarray, "hit 3"],
    senders: Int32[np.ndarray, " edge"],
    receivers: Int32[np.ndarray, " edge"],
) -> tuple[Int32[np.ndarray, " tree_edge"], Int32[np.ndarray, " tree_edge"]]:
    """Ends of the edges of the minimum spanning forest over the given edges, each edge once."""
    once = senders < receivers
    lower, upper = senders[once], receivers[once]
    # Squared distances have the same tree. scipy takes 0 for no edge: hits at the same place get
    # the smallest positive length instead.
    length = np.sum((position[lower] - position[upper]) ** 2, axis=1)
    length = np.maximum(length, np.finfo(np.float64).tiny)
    graph = sparse.csr_array((length, (lower, upper)), shape=(len(position),) * 2)
    lower, upper = csgraph.minimum_spanning_tree(graph).nonzero()
    return lower, upper


def _two_steps(
    senders: Int[np.ndarray, " edge"], receivers: Int[np.ndarray, " edge"], num_hits: int
) -> tuple[Int[np.ndarray, " walk"], Int[np.ndarray, " walk"]]:
    """Ends of all walks of two steps; through self-loops, walks of one step are among them."""
    adjacency = sparse.csr_array(
        (np.ones(len(senders), np.int32), (receivers, senders)), shape=(num_hits, num_hits)
    )
    # The types of scipy differ from version to version.
    ends: Any = (adjacency @ adjacency).nonzero()
    receivers, senders = ends
    return senders, receivers
