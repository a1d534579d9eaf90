"""Host side: scikit-learn's density clusterers on edge scores, for comparison with HyperTrack.

The distance of two hits is 1 - p of the edge between them, the more probable direction of it, and 1
without an edge. Memory follows the edges: no matrix over the hits is ever filled.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64
from scipy.sparse import coo_array, csgraph, csr_array

from hypertrack_jax.clustering.tracks import HitClusters
from hypertrack_jax.errors import MissingPackageError
from hypertrack_jax.tunes.tune import ClusterTune

NO_EDGE = 1.0
"""Distance of two hits without an edge."""
MIN_DISTANCE = 1e-8
"""Distance of two hits with p = 1: shorter than the next that float32 knows, 6e-8, and not 0, where
a density would be infinite and a sparse matrix would have no entry."""


class Links(NamedTuple):
    """Pairs of hits, each once."""

    low: Int64[np.ndarray, " link"]
    """The hit with the smaller index."""
    high: Int64[np.ndarray, " link"]
    distance: Float64[np.ndarray, " link"]
    """Between `MIN_DISTANCE` and 1."""


def dbscan(
    probability: Float[np.ndarray, " edge"],
    senders: Int[np.ndarray, " edge"],
    receivers: Int[np.ndarray, " edge"],
    num_hits: int,
    eps: float = 0.2,
    min_samples: int = 3,
    min_hits: int = 4,
    edge_threshold: float = 0.55,
) -> Int32[np.ndarray, " hit"]:
    """DBSCAN (Ester et al., KDD 1996) on the kept edges, with the published settings.

    Args:
      probability: probability of each edge to be true.
      senders: one end of each edge; self-loops are left out.
      receivers: the other end.
      num_hits: number of hits.
      eps: hits are neighbours up to this distance.
      min_samples: a hit with so many neighbours, itself included, is the core of a cluster.
      min_hits: a cluster with fewer hits is noise.
      edge_threshold: an edge is kept when its probability is above it.

    Returns:
      Cluster of each hit: 0, 1, ... without gaps, in the order of the clusters' first hits; -1 for
      noise.

    Raises:
      ImportError: scikit-learn is missing.
    """
    sklearn = _scikit_learn()
    cluster = sklearn.cluster.DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    links = _kept_links(probability, senders, receivers, edge_threshold)
    if len(links.low) == 0:
        return np.full(num_hits, -1, np.int32)
    distances = sklearn.neighbors.sort_graph_by_row_values(
        _distances(links, num_hits), warn_when_not_sorted=False
    )
    return _numbered(cluster.fit_predict(distances), min_hits)


def hdbscan(
    probability: Float[np.ndarray, " edge"],
    senders: Int[np.ndarray, " edge"],
    receivers: Int[np.ndarray, " edge"],
    num_hits: int,
    min_samples: int = 2,
    min_cluster_size: int = 4,
    min_hits: int = 4,
    edge_threshold: float = 0.55,
) -> Int32[np.ndarray, " hit"]:
    """HDBSCAN (Campello, Moulavi and Sander, PAKDD 2013) on the kept edges, as published.

    The hierarchy of clusters depends on a minimum spanning tree alone, so the edges are first
    thinned to one. At distance 1, where edges are missing, the event falls apart into its connected
    components at once. *Deviation*: in scikit-learn and the PyTorch program hits at one distance
    part one after another in an arbitrary order, also at distance 1, by which hits without any edge
    end up in clusters. Here equal distances have an order: by 1 - p, then by index.

    Args:
      probability: probability of each edge to be true.
      senders: one end of each edge; self-loops are left out.
      receivers: the other end.
      num_hits: number of hits.
      min_samples: two hits are at least as far apart as either is from the nearest hit of this
        number, itself being number 1; with 2 this changes nothing.
      min_cluster_size: what parts from a cluster with fewer hits is lost and no cluster.
      min_hits: a cluster with fewer hits is noise.
      edge_threshold: an edge is kept when its probability is above it.

    Returns:
      Cluster of each hit: 0, 1, ... without gaps, in the order of the clusters' first hits; -1 for
      noise.

    Raises:
      ImportError: scikit-learn is missing.
    """
    cluster = _scikit_learn().cluster.HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=1, metric="precomputed", copy=True
    )
    links = _kept_links(probability, senders, receivers, edge_threshold)
    label = np.full(num_hits, -1, np.int32)
    if len(links.low) == 0:
        return label
    forest = _spanning_forest(_mutual_reachability(links, num_hits, min_samples), num_hits)
    hits, tree = _one_tree(forest, num_hits, min_cluster_size)
    distances = _distances(tree, len(hits) + min_cluster_size)
    label[hits] = cluster.fit_predict(distances)[: len(hits)]
    return _numbered(label, min_hits)


def density_clusters(
    tune: ClusterTune,
    probability: Float32[np.ndarray, " edge"],
    senders: Int32[np.ndarray, " edge"],
    receivers: Int32[np.ndarray, " edge"],
    num_hits: int,
) -> HitClusters:
    """Clusters by `dbscan` or `hdbscan`, as the tune names.

    Args:
      tune: the method and its settings.
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


DENSITY = {"dbscan": dbscan, "hdbscan": hdbscan}
"""Clusterers that run on the host."""


def _scikit_learn() -> ModuleType:
    try:
        import sklearn.cluster
        import sklearn.neighbors
    except ImportError as error:
        raise MissingPackageError(
            "dbscan and hdbscan need scikit-learn, which is not installed; "
            "run pip install 'hypertrack-jax[baselines]', or cluster by cut."
        ) from error
    return sklearn


def _kept_links(
    probability: Float[np.ndarray, " edge"],
    senders: Int[np.ndarray, " edge"],
    receivers: Int[np.ndarray, " edge"],
    edge_threshold: float,
) -> Links:
    """The pairs that an edge above the threshold joins, by the more probable of its directions."""
    is_kept = (probability > edge_threshold) & (senders != receivers)
    senders, receivers = senders[is_kept].astype(np.int64), receivers[is_kept].astype(np.int64)
    low, high = np.minimum(senders, receivers), np.maximum(senders, receivers)
    distance = np.maximum(1 - probability[is_kept].astype(np.float64), MIN_DISTANCE)
    order = np.lexsort((distance, high, low))
    low, high, distance = low[order], high[order], distance[order]
    is_first = np.ones(len(low), bool)
    is_first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return Links(low[is_first], high[is_first], distance[is_first])


def _mutual_reachability(links: Links, num_hits: int, min_samples: int) -> Links:
    """The links that `min_samples` leaves shorter than no edge at all, all of different length."""
    own = _own_distances(links, num_hits, min_samples)
    reach = np.maximum(links.distance, np.maximum(own[links.low], own[links.high]))
    order = np.lexsort((links.high, links.low, links.distance, reach))
    order = order[reach[order] < NO_EDGE]
    # Two units in the last place apart, because sorts of equal numbers differ between processors.
    distance = reach[order] * (1 + np.arange(len(order)) * 2.0**-51)
    return Links(links.low[order], links.high[order], distance)


def _own_distances(links: Links, num_hits: int, min_samples: int) -> Float64[np.ndarray, " hit"]:
    """Distance of each hit to its `min_samples`-th nearest; the first is the hit itself."""
    if min_samples == 1:
        return np.zeros(num_hits)
    hit = np.concatenate([links.low, links.high])
    distance = np.concatenate([links.distance, links.distance])
    order = np.lexsort((distance, hit))
    first = np.searchsorted(hit[order], np.arange(num_hits))
    has_enough = np.bincount(hit, minlength=num_hits) >= min_samples - 1
    own = np.full(num_hits, NO_EDGE)
    own[has_enough] = distance[order][first[has_enough] + min_samples - 2]
    return own


def _spanning_forest(links: Links, num_hits: int) -> Links:
    """A minimum spanning tree of each component."""
    ends = (links.low.astype(np.int32), links.high.astype(np.int32))
    graph = csr_array((links.distance, ends), shape=(num_hits, num_hits))
    forest = csgraph.minimum_spanning_tree(graph).tocoo()
    return Links(forest.row.astype(np.int64), forest.col.astype(np.int64), forest.data)


def _one_tree(
    forest: Links, num_hits: int, min_cluster_size: int
) -> tuple[Int64[np.ndarray, " kept"], Links]:
    """The trees of at least `min_cluster_size` hits as one tree, with an artificial cluster more.

    HDBSCAN never takes the whole for a cluster. Next to the artificial one, at distance 1 from all
    others as they are from each other, a component can be one even if it is the only one.

    Returns:
      The hits in such trees, rising; and the links between their places in this list, with the
      artificial cluster behind the last place.
    """
    ends = (forest.low.astype(np.int32), forest.high.astype(np.int32))
    graph = coo_array((forest.distance, ends), shape=(num_hits, num_hits))
    _, component = csgraph.connected_components(graph, directed=False)
    is_large = np.bincount(component, minlength=1)[component] >= min_cluster_size
    hits = np.flatnonzero(is_large)
    place = np.cumsum(is_large) - 1
    is_kept = is_large[forest.low]
    _, representative = np.unique(component[hits], return_index=True)
    artificial = np.arange(len(hits), len(hits) + min_cluster_size)
    first = np.full(len(representative), artificial[0])
    tree = Links(
        np.concatenate([place[forest.low[is_kept]], artificial[:-1], representative]),
        np.concatenate([place[forest.high[is_kept]], artificial[1:], first]),
        np.concatenate(
            [
                forest.distance[is_kept],
                np.full(min_cluster_size - 1, MIN_DISTANCE),
                np.full(len(representative), NO_EDGE),
            ]
        ),
    )
    return hits, tree


def _distances(links: Links, num_hits: int) -> csr_array:
    """Symmetric distances with a diagonal of 0; what is not stored is far away."""
    own = np.arange(num_hits)
    ends = (
        np.concatenate([own, links.low, links.high]).astype(np.int32),
        np.concatenate([own, links.high, links.low]).astype(np.int32),
    )
    distance = np.concatenate([np.zeros(num_hits), links.distance, links.distance])
    return csr_array((distance, ends), shape=(num_hits, num_hits))


def _numbered(label: Int[np.ndarray, " hit"], min_hits: int) -> Int32[np.ndarray, " hit"]:
    """Clusters of at least `min_hits`, renumbered in the order of their first hits."""
    _, first, cluster, size = np.unique(
        label, return_index=True, return_inverse=True, return_counts=True
    )
    is_cluster = (label[first] >= 0) & (size >= min_hits)
    number = np.full(len(first), -1, np.int32)
    order = np.argsort(np.where(is_cluster, first, len(label)), kind="stable")
    number[order[: is_cluster.sum()]] = np.arange(is_cluster.sum())
    return number[cluster]
