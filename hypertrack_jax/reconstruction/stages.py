"""Device side: the four stages from hits to clusters, each one compiled program.

Every stage takes its capacities, what all events share, and what the stages before it have made,
and gives a result with what it would have needed of its capacities. Training, evaluation, timing,
several devices and the exported program all run these functions.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from hypertrack_jax.clustering.baselines import large_components, no_clusters
from hypertrack_jax.clustering.search import SearchSizes
from hypertrack_jax.clustering.tracks import HitClusters
from hypertrack_jax.clustering.transformer import KeptEdges, kept_edges, transformer_clusters
from hypertrack_jax.graph.event_graph import EventGraph, padded_graph
from hypertrack_jax.model.parameters import CLUSTER, EDGE
from hypertrack_jax.networks.cluster_shape import Clusters
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.reconstruction.capacities import (
    FilterCapacities,
    FirstCapacities,
    GraphCapacities,
    KeptCapacities,
    ListCapacities,
)
from hypertrack_jax.reconstruction.filtering import filtered_pairs
from hypertrack_jax.tunes.tune import ClusterTune, NetworkTune, Tune
from hypertrack_jax.voxdyn.connectivity import Rows
from hypertrack_jax.voxdyn.hit_edges import edges_of_cells
from hypertrack_jax.voxdyn.hit_pairs import PairLists, pair_lists
from hypertrack_jax.voxdyn.model import is_inside
from hypertrack_jax.voxdyn.voronoi import VoronoiIndex, assign_cells


class GraphConstructor(NamedTuple):
    """The arrays of Voxel-Dynamics."""

    rows: Rows
    """C."""
    index: VoronoiIndex
    """Search index over the centroids."""
    space: Float32[Array | np.ndarray, "2 3"]
    """Smallest and largest coordinates of the training hits, in mm."""
    min_count: Int32[Array | np.ndarray, ""]
    """Smallest C[u, v] that makes edges."""


class Shared(NamedTuple):
    """What all events share: the arrays of a model, and numbers that may change."""

    constructor: GraphConstructor
    params: dict[str, Any]
    """Weights of the edge predictor and of the clusterer."""
    batch_stats: Any
    """Running BatchNorm statistics of the edge predictor."""
    edge_threshold: Float32[Array | np.ndarray, ""]
    """Edges with a smaller probability are cut."""
    key: PRNGKeyArray
    """Decides the random choices of the clusterer."""
    edge_filter: FilterWeights | None = None


class PaddedHits(NamedTuple):
    """The hits of an event, in places of a fixed number."""

    position: Float32[Array | np.ndarray, "hit 3"]
    """x, y, z in mm; anything behind the last hit."""
    num_hits: Int32[Array | np.ndarray, ""]
    clusters: Clusters | None = None
    """None for models that do not look at them."""


class Candidates(NamedTuple):
    """The candidate graph."""

    graph: EventGraph
    num_outside: Int32[Array, ""]
    """Hits outside the space of the training hits, which have no edges."""


class Scores(NamedTuple):
    """What the edge predictor says of an event."""

    embedding: Float[Array, "hit feat"]
    """z of every hit."""
    probability: Float32[Array, " edge"]
    """Probability of every edge to join hits of one particle."""


class ClusterMethod(NamedTuple):
    """What the last stage is compiled for, beside its capacities."""

    network: NetworkTune
    cluster: ClusterTune


class NoCapacities(NamedTuple):
    """Of a stage whose result is as large as what it takes."""


class Stage(NamedTuple):
    """A step of the reconstruction with all that its program is compiled for."""

    name: str
    """`VD`, `filter`, `GNN`, `CC` or `cluster`."""
    function: Callable[..., tuple[Any, Any]]
    """`(method, capacities, shared, *made) -> (result, needed)`, where `made` are the padded hits
    and the results of the stages before."""
    method: Any
    """Static: networks and settings."""
    capacities: Any
    """Static: those to begin with."""
    replaces_last: bool = False
    """Whether its result takes the place of that of the stage before, which no other needs."""

    def __call__(self, capacities: Any, shared: Shared, *made: Any) -> tuple[Any, Any]:
        """The result in some capacities, and what is needed of them."""
        return self.function(self.method, capacities, shared, *made)

    def after(self, made: tuple[Any, ...], result: Any) -> tuple[Any, ...]:
        """What has been made, for the next stage."""
        return (*(made[:-1] if self.replaces_last else made), result)


def stages_of(tune: Tune, first: FirstCapacities) -> list[Stage]:
    """The stages of a model; the density clusterers run on the host, behind them."""
    # Programs do not depend on the thresholds, with which they would be compiled again.
    cluster = replace(tune.cluster, edge_threshold=0.0, training_threshold=None)
    if cluster.cluster != "transformer":
        # Nor what finds no clusters on the device on anything else.
        kind = "cut" if cluster.cluster == "cut" else "none"
        cluster = ClusterTune(cluster=kind, edge_threshold=0.0, min_hits=cluster.min_hits)
    graph = [Stage("VD", candidate_graph, None, first.graph)]
    if first.edge_filter is not None:
        graph = [
            Stage("VD", pairs_to_filter, None, first.graph),
            Stage("filter", filtered_graph, None, first.edge_filter, replaces_last=True),
        ]
    return [
        *graph,
        Stage("GNN", scored_edges, tune.network, NoCapacities()),
        Stage("CC", edges_kept, None, first.kept),
        Stage("cluster", clusters, ClusterMethod(tune.network, cluster), first.search),
    ]


@partial(jax.jit, static_argnums=0)
def candidate_edges(
    capacities: GraphCapacities, constructor: GraphConstructor, hits: PaddedHits
) -> tuple[Candidates, GraphCapacities]:
    """All pairs of hits whose cells C connects; without edges where the capacities are exceeded."""
    cell, num_outside = _cells_of(constructor, hits)
    found = edges_of_cells(
        constructor.rows,
        cell,
        constructor.min_count,
        block_capacity=capacities.num_blocks,
        edge_capacity=capacities.num_edges,
    )
    edges = found.edges
    # A graph that is not complete is of no use: without edges there is nothing more to do.
    num_edges = jnp.where(edges.is_overflow, 0, edges.num_edges)
    graph = padded_graph(
        jnp.asarray(hits.position),
        jnp.asarray(hits.num_hits),
        edges.senders,
        edges.receivers,
        edges.counts,
        num_edges,
    )
    needed: Any = GraphCapacities(found.num_blocks, edges.num_edges)
    return Candidates(graph, num_outside), needed


def _cells_of(
    constructor: GraphConstructor, hits: PaddedHits
) -> tuple[Int32[Array, " hit"], Int32[Array, ""]]:
    """The cell of each hit, V for those without, and the number of hits outside."""
    position, num_hits = jnp.asarray(hits.position), jnp.asarray(hits.num_hits)
    is_hit = jnp.arange(len(position), dtype=jnp.int32) < num_hits
    index = constructor.index
    inside = is_hit & is_inside(jnp.asarray(constructor.space), position)
    # A hit in the middle of the detector takes the place of all that need no cell: those outside
    # would have the search open every node.
    centroid = jnp.asarray(index.centroids)[:1]
    cell = assign_cells(index, jnp.where(inside[:, None], position, centroid))
    cell = jnp.where(inside, cell, len(index.centroids))
    return cell, (is_hit & ~inside).sum(dtype=jnp.int32)


class RawPairs(NamedTuple):
    """The pairs that C joins, before any is scored."""

    lists: PairLists
    num_outside: Int32[Array, ""]


@partial(jax.jit, static_argnums=0)
def raw_pairs(
    capacities: ListCapacities, constructor: GraphConstructor, hits: PaddedHits
) -> tuple[RawPairs, ListCapacities]:
    """From what the pairs of the candidate graph are made."""
    cell, num_outside = _cells_of(constructor, hits)
    lists = pair_lists(
        constructor.rows,
        cell,
        constructor.min_count,
        block_capacity=capacities.num_blocks,
        place_capacity=capacities.num_places,
    )
    needed: Any = ListCapacities(lists.num_blocks, lists.num_places)
    return RawPairs(lists, num_outside), needed


def pairs_to_filter(
    method: None, capacities: ListCapacities, shared: Shared, hits: PaddedHits
) -> tuple[RawPairs, ListCapacities]:
    """`VD` of a model with a filter."""
    return raw_pairs(capacities, shared.constructor, hits)


def filtered_graph(
    method: None, capacities: FilterCapacities, shared: Shared, hits: PaddedHits, raw: RawPairs
) -> tuple[Candidates, FilterCapacities]:
    """`filter`: the candidate graph of the pairs that the filter keeps."""
    assert shared.edge_filter is not None, "a tune with a filter comes with its weights"
    return filtered_edges(capacities, shared.edge_filter, hits, raw)


@partial(jax.jit, static_argnums=0)
def filtered_edges(
    capacities: FilterCapacities, weights: FilterWeights, hits: PaddedHits, raw: RawPairs
) -> tuple[Candidates, FilterCapacities]:
    """The graph of the pairs that the filter keeps; without edges where capacities are exceeded."""
    position = jnp.asarray(hits.position)
    kept = filtered_pairs(weights, position, raw.lists, capacities, hits.clusters)
    graph = kept.graph
    # As above: a graph that is not complete is of no use.
    num_edges = jnp.where(kept.is_overflow, 0, 2 * graph.pairs.number)
    pairs = graph.pairs
    padded = padded_graph(
        position,
        jnp.asarray(hits.num_hits),
        graph.senders,
        graph.receivers,
        pairs.count[graph.pair],
        num_edges,
        pairs.logit[graph.pair],
    )
    return Candidates(padded, raw.num_outside), kept.needed


def candidate_graph(
    method: None, capacities: GraphCapacities, shared: Shared, hits: PaddedHits
) -> tuple[Candidates, GraphCapacities]:
    """`VD`: the candidate graph of some hits."""
    return candidate_edges(capacities, shared.constructor, hits)


@partial(jax.jit, static_argnums=(0, 1))
def scored_edges(
    method: NetworkTune,
    capacities: NoCapacities,
    shared: Shared,
    hits: PaddedHits,
    candidates: Candidates,
) -> tuple[Scores, NoCapacities]:
    """`GNN`: embeddings and edge probabilities by running BatchNorm statistics."""
    weights = shared.params[EDGE], shared.batch_stats
    prediction = predict(method, *weights, candidates.graph, is_symmetric=True)
    probability = jax.nn.sigmoid(prediction.logit.astype(jnp.float32))
    return Scores(prediction.embedding, probability), capacities


@partial(jax.jit, static_argnums=(0, 1))
def edges_kept(
    method: None,
    capacities: KeptCapacities,
    shared: Shared,
    hits: PaddedHits,
    candidates: Candidates,
    scores: Scores,
) -> tuple[KeptEdges, KeptCapacities]:
    """`CC`: connected components and neighbours by the edges above the threshold."""
    threshold = jnp.asarray(shared.edge_threshold)
    kept = kept_edges(candidates.graph, scores.probability, threshold, capacities.num_neighbors)
    # Where there are no rows of neighbours, none are too short.
    largest: Any = kept.neighbors.degree.max(initial=0) if capacities.num_neighbors else 0
    return kept, KeptCapacities(largest)


@partial(jax.jit, static_argnums=(0, 1))
def clusters(
    method: ClusterMethod,
    capacities: SearchSizes,
    shared: Shared,
    hits: PaddedHits,
    candidates: Candidates,
    scores: Scores,
    kept: KeptEdges,
) -> tuple[HitClusters, SearchSizes]:
    """`cluster`: clusters of the hits, with numbers that need not follow their order."""
    needed: Any = capacities
    if method.cluster.cluster == "transformer":
        found = transformer_clusters(
            method.network,
            method.cluster,
            shared.params[CLUSTER],
            candidates.graph.nodes,
            scores.embedding,
            kept,
            capacities,
            shared.key,
        )
        needed = capacities._replace(
            num_slots=found.needed_slots,
            num_rounds=jnp.where(found.is_unfinished, 2 * capacities.num_rounds, 0),
        )
        return HitClusters(found.label, found.membership), needed
    if method.cluster.cluster == "cut":
        label = large_components(kept.component, method.cluster.min_hits)
    else:
        label = no_clusters(len(hits.position))
    return HitClusters(label, (label >= 0).astype(jnp.float32)), needed
