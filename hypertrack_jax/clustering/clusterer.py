"""The border: scored edges in, clusters out, by whichever method the tune names."""

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from hypertrack_jax.clustering.baselines import large_components, no_clusters
from hypertrack_jax.clustering.density import dbscan, hdbscan
from hypertrack_jax.clustering.search import Clusters, SearchSizes
from hypertrack_jax.clustering.transformer import KeptEdges, by_first_hit, transformer_clusters
from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.tunes.tune import ClusterTune, Tune

_LOG = logging.getLogger(__name__)
DENSITY = {"dbscan": dbscan, "hdbscan": hdbscan}
"""Clusterers that run on the host."""
HITS_PER_SEED = 16
"""Node capacity per micrograph of a round: about a track of ten hits each, and padding."""
FIRST_NEIGHBORS = {1: {4096: 32, 32768: 64, 2**31: 128}, 2: {65536: 16, 2**31: 32}}
"""Kept edges of a hit that are tried first, by the largest node capacity that they are for: more
hits lie nearer together. Fewer where micrographs reach two steps or more, in sparse graphs."""
FIRST_SLOTS = {32768: 64, 2**31: 128}
"""Hits of a micrograph that are tried first, likewise; fewer where the tune sets a limit."""


class HitClusters(NamedTuple):
    """Clusters of the hits of an event."""

    label: Int32[np.ndarray, " hit"]
    """Cluster of each hit: 0, 1, ... in the order of their first hits; -1 for none."""
    membership: Float32[np.ndarray, " hit"]
    """Probability of each hit to belong to its cluster; 1 where the method gives none, 0 for hits
    without a cluster."""


def find_clusters(
    tune: Tune,
    params: Any,
    graph: EventGraph,
    embedding: Float[Array, "hit feat"],
    probability: Float[Array, " edge"],
    kept: KeptEdges,
    key: PRNGKeyArray,
) -> HitClusters:
    """Clusters the hits of a padded graph by `tune.cluster.cluster`.

    Args:
      tune: the method and its settings.
      params: parameters of the clusterer, for `transformer` alone.
      graph: the graph, on the device.
      embedding: z of every hit, for `transformer` alone.
      probability: probability of every edge.
      kept: components and largest degree of the edges above the threshold.
      key: decides the random choices of `transformer`.

    Returns:
      Clusters of the real hits.

    Raises:
      ImportError: scikit-learn is needed and missing.
    """
    num_hits, num_edges = int(graph.n_node[0]), int(graph.n_edge[0])
    method, min_hits = tune.cluster.cluster, tune.cluster.min_hits
    if method == "transformer":
        clusters = complete_search(tune, params, graph, embedding, probability, kept, key)
        label = by_first_hit(clusters.label)
        label, membership = (np.asarray(a)[:num_hits] for a in (label, clusters.membership))
        return HitClusters(label, membership)
    if method in DENSITY:
        edges = (np.asarray(a)[:num_edges] for a in (probability, graph.senders, graph.receivers))
        return density_clusters(tune.cluster, *edges, num_hits=num_hits)
    if method == "cut":
        label = np.asarray(large_components(kept.component, min_hits))[:num_hits]
    else:
        label = np.asarray(no_clusters(num_hits))
    return HitClusters(label, (label >= 0).astype(np.float32))


def complete_search(
    tune: Tune,
    params: Any,
    graph: EventGraph,
    embedding: Float[Array, "hit feat"],
    probability: Float[Array, " edge"],
    kept: KeptEdges,
    key: PRNGKeyArray,
) -> Clusters:
    """`transformer_clusters` with capacities that suffice: larger ones are tried until they do.

    Args:
      tune: the network and the settings of the search.
      params: parameters of the clusterer.
      graph: the graph, on the device.
      embedding: z of every hit.
      probability: probability of every edge.
      kept: components and largest degree of the edges above the threshold.
      key: decides all random choices.
    """
    # What the program does not depend on would only have it compiled again.
    cluster = replace(tune.cluster, edge_threshold=0.0, training_threshold=None)
    sizes = first_sizes(len(graph.nodes.mask), tune.cluster)
    sizes = enough_sizes(sizes, int(kept.max_degree), 0, False)
    while True:
        clusters = transformer_clusters(
            tune.network,
            cluster,
            params,
            graph,
            embedding,
            probability,
            kept.component,
            sizes,
            key,
            tune.cluster.edge_threshold,
        )
        needed = jax.device_get(clusters)
        enough = enough_sizes(
            sizes,
            int(needed.needed_neighbors),
            int(needed.needed_slots),
            bool(needed.is_unfinished),
        )
        if enough == sizes:
            return clusters
        _LOG.info("the search for clusters needs %s", enough)
        sizes = enough


def density_clusters(
    tune: ClusterTune,
    probability: Float32[np.ndarray, " edge"],
    senders: Int32[np.ndarray, " edge"],
    receivers: Int32[np.ndarray, " edge"],
    num_hits: int,
) -> HitClusters:
    """Clusters by scikit-learn, on the host.

    Args:
      tune: `dbscan` or `hdbscan`, and its settings.
      probability: probability of every edge.
      senders: one end of each edge.
      receivers: the other.
      num_hits: number of hits.

    Raises:
      ImportError: scikit-learn is missing.
    """
    label = DENSITY[tune.cluster](
        probability,
        senders,
        receivers,
        num_hits,
        min_hits=tune.min_hits,
        edge_threshold=tune.edge_threshold,
    )
    return HitClusters(label, (label >= 0).astype(np.float32))


def first_sizes(num_nodes: int, tune: ClusterTune) -> SearchSizes:
    """The capacities that a search among so many hits, padding included, is tried in first."""

    def of(table: dict[int, int]) -> int:
        return next(number for most, number in table.items() if num_nodes <= most)

    num_slots = of(FIRST_SLOTS)
    return SearchSizes(
        num_neighbors=of(FIRST_NEIGHBORS[min(tune.micrograph_hops, 2)]),
        num_seeds=max(16, num_nodes // HITS_PER_SEED),
        num_slots=min(num_slots, tune.largest_micrograph or num_slots),
        num_rounds=200,
    )


def enough_sizes(
    sizes: SearchSizes, needed_neighbors: int, needed_slots: int, is_unfinished: bool
) -> SearchSizes:
    """The sizes, the first of them that did not suffice doubled until it does.

    Only the first: a search among too few neighbours, or in micrographs that were cut, says little
    of what it needs beside.
    """
    if needed_neighbors > sizes.num_neighbors:
        return sizes._replace(num_neighbors=_grown(sizes.num_neighbors, needed_neighbors))
    if needed_slots > sizes.num_slots:
        return sizes._replace(num_slots=_grown(sizes.num_slots, needed_slots))
    return sizes._replace(num_rounds=sizes.num_rounds * (2 if is_unfinished else 1))


def _grown(capacity: int, needed: int) -> int:
    """The capacity, doubled until it is enough."""
    while capacity < needed:
        capacity *= 2
    return capacity
