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
from hypertrack_jax.clustering.transformer import KeptEdges, transformer_clusters
from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.tunes.tune import Tune

_LOG = logging.getLogger(__name__)
FIRST_SIZES = SearchSizes(num_neighbors=8, num_slots=64, num_rounds=200)
"""The least capacities of the search, all but the number of seeds."""
HITS_PER_SEED = 16
"""Node capacity per micrograph of a round: about a track of ten hits each, and padding."""


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
        label, membership = (np.asarray(array)[:num_hits] for array in clusters[:2])
        return HitClusters(_by_first_hit(label), membership)
    if method == "cut":
        label = np.asarray(large_components(kept.component, min_hits))[:num_hits]
    elif method == "none":
        label = np.asarray(no_clusters(num_hits))
    else:
        density = {"dbscan": dbscan, "hdbscan": hdbscan}[method]
        ends = (np.asarray(a)[:num_edges] for a in (probability, graph.senders, graph.receivers))
        threshold = tune.cluster.edge_threshold
        label = density(*ends, num_hits, min_hits=min_hits, edge_threshold=threshold)
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
    sizes = FIRST_SIZES._replace(
        num_neighbors=_grown(FIRST_SIZES.num_neighbors, int(kept.max_degree)),
        num_seeds=max(16, len(graph.nodes.mask) // HITS_PER_SEED),
    )
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
        enough = enough_sizes(sizes, clusters)
        if enough == sizes:
            return clusters
        _LOG.info("the search for clusters needs %s", enough)
        sizes = enough


def enough_sizes(sizes: SearchSizes, clusters: Clusters) -> SearchSizes:
    """The sizes, those of them doubled that did not suffice, until they do."""
    needed = jax.device_get(clusters)
    return sizes._replace(
        num_neighbors=_grown(sizes.num_neighbors, int(needed.needed_neighbors)),
        num_slots=_grown(sizes.num_slots, int(needed.needed_slots)),
        num_rounds=sizes.num_rounds * (2 if needed.is_unfinished else 1),
    )


def _grown(capacity: int, needed: int) -> int:
    """The capacity, doubled until it is enough."""
    while capacity < needed:
        capacity *= 2
    return capacity


def _by_first_hit(label: Int32[np.ndarray, " hit"]) -> Int32[np.ndarray, " hit"]:
    """The clusters numbered by their first hits."""
    names, first, number = np.unique(label, return_index=True, return_inverse=True)
    is_cluster = names >= 0
    rank = np.full(len(names), -1, np.int32)
    rank[is_cluster] = np.argsort(np.argsort(first[is_cluster]))
    return rank[number]
