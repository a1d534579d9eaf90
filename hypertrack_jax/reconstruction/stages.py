"""Device side: reconstruction as one program per set of capacities, and its stages one by one.

The stages are the same functions in both. Each capacity that an event can exceed comes with what
the event needs of it; the border, `reconstruct.py`, runs again in larger ones.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray

from hypertrack_jax.clustering.baselines import large_components, no_clusters
from hypertrack_jax.clustering.clusterer import DENSITY, first_sizes
from hypertrack_jax.clustering.clusterer import enough_sizes as enough_search
from hypertrack_jax.clustering.search import SearchSizes
from hypertrack_jax.clustering.transformer import (
    by_first_hit,
    kept_edges,
    transformer_clusters,
)
from hypertrack_jax.graph.event_graph import EventGraph, edge_capacity_for, padded_graph
from hypertrack_jax.model.parameters import CLUSTER, EDGE
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.tunes.tune import ClusterTune, NetworkTune, Tune
from hypertrack_jax.voxdyn.connectivity import Rows, bucket_size
from hypertrack_jax.voxdyn.lookup import BLOCK, TOO_MANY, edges_of_cells
from hypertrack_jax.voxdyn.model import VoxelDynamics, is_inside
from hypertrack_jax.voxdyn.voronoi import VoronoiIndex, assign_cells

PARTNERS = {"hyper": 12, "cricket": 5, "eom": 4}
"""Edges of a hit that its own particle makes, about."""
CROWD = 1.1
"""How much more often two hits of an event are joined than two cells drawn at random."""
EDGE_MARGIN = 1.25
"""Room for events that are denser than the average: the densest of 18 simulated
events, of 230 to 1.5e5 hits, takes up 94 % of it."""
BLOCK_MARGIN = 1.2
"""The same for the rows of C, whose number varies less."""


class Sizes(NamedTuple):
    """Capacities of the program; static, so each set of them is a compilation."""

    num_hits: int
    """Hits, and one place that stays empty."""
    num_blocks: int
    """Blocks of the rows of C, see `voxdyn.lookup`."""
    num_edges: int
    search: SearchSizes


class Needed(NamedTuple):
    """What an event needs of the capacities; exact up to the first that is exceeded."""

    num_blocks: int | Int32[Array, ""] = 0
    num_edges: int | Int32[Array, ""] = 0
    num_neighbors: int | Int32[Array, ""] = 0
    num_slots: int | Int32[Array, ""] = 0
    is_unfinished: bool | Bool[Array, ""] = False
    """True where the search ran out of rounds."""


class Method(NamedTuple):
    """What the program depends on beside its capacities; static."""

    network: NetworkTune
    cluster: ClusterTune
    """Without the thresholds of edges, which are not static."""


class Settings(NamedTuple):
    """Numbers that can change without a compilation."""

    min_count: Int32[Array | np.ndarray, ""]
    """Smallest C[u, v] that makes edges."""
    edge_threshold: Float32[Array | np.ndarray, ""]
    """Edges with a smaller probability are cut."""
    key: PRNGKeyArray
    """Decides the random choices of the clusterer."""


class Model(NamedTuple):
    """The arrays of a trained model."""

    rows: Rows
    """C."""
    index: VoronoiIndex
    """Search index over the centroids."""
    space: Float32[Array | np.ndarray, "2 3"]
    """Smallest and largest coordinates of the training hits, in mm."""
    params: dict[str, Any]
    """Weights of the edge predictor and of the clusterer."""
    batch_stats: Any
    """Running BatchNorm statistics of the edge predictor."""


class PaddedHits(NamedTuple):
    """The hits of an event."""

    position: Float32[Array | np.ndarray, "hit 3"]
    """x, y, z in mm; anything behind the last hit."""
    num_hits: Int32[Array | np.ndarray, ""]


class Candidates(NamedTuple):
    """The candidate graph and what came up as it was made."""

    graph: EventGraph
    num_blocks: Int32[Array, ""]
    """Blocks that are needed."""
    num_edges: Int32[Array, ""]
    """Edges that are needed, where the blocks sufficed."""
    num_outside: Int32[Array, ""]
    """Hits outside the space of the training hits, which have no edges."""


class Scores(NamedTuple):
    """What the edge predictor says of an event."""

    embedding: Float[Array, "hit feat"]
    """z of every hit."""
    probability: Float32[Array, " edge"]
    """Probability of every edge to join hits of one particle."""


class Found(NamedTuple):
    """What the program finds, and what it would have needed."""

    label: Int32[Array, " hit"]
    """Cluster of each hit, 0, 1, ... in the order of their first hits; -1 for none."""
    membership: Float32[Array, " hit"]
    """Probability of each hit to belong to its cluster; 1 where the method gives none, 0 for hits
    without a cluster."""
    senders: Int32[Array, " edge"]
    receivers: Int32[Array, " edge"]
    probability: Float32[Array, " edge"]
    embedding: Float[Array, "hit feat"]
    """z of every hit."""
    num_outside: Int32[Array, ""]
    """Hits outside the space of the training hits."""
    needed: Needed


def method_of(tune: Tune) -> Method:
    """What the program of a tune depends on; the density clusterers run on the host, behind it."""
    cluster = tune.cluster
    on_host = cluster.cluster in DENSITY
    # What the program does not depend on would only have it compiled again.
    return Method(
        tune.network,
        replace(
            cluster,
            cluster="none" if on_host else cluster.cluster,
            edge_threshold=0.0,
            training_threshold=None,
        ),
    )


def sizes_for(num_hits: int, voxdyn: VoxelDynamics, min_count: int, cluster: ClusterTune) -> Sizes:
    """The capacities that an event is tried in first: they follow from its number of hits alone.

    A hit has edges to hits of its particle, and to as many others as the density of C tells: where
    2 % of it are connected, that was measured to be 42 edges for each hit of 1300, 354 of 14 600
    and 2585 of 109 000.
    """
    num_cells = voxdyn.num_cells
    connected = 2 * int(voxdyn.histogram[min_count:].sum()) / num_cells**2
    degree = PARTNERS[voxdyn.node2node] + CROWD * min(connected, 1.0) * num_hits
    per_row = len(voxdyn.rows.columns) / num_cells / BLOCK + 1
    num_rows = min(BLOCK_MARGIN * num_hits, num_cells)
    capacity = bucket_size(num_hits + 1)
    return Sizes(
        num_hits=capacity,
        num_blocks=bucket_size(int(per_row * num_rows)),
        num_edges=edge_capacity_for(int(EDGE_MARGIN * degree * num_hits)),
        search=first_sizes(capacity, cluster),
    )


def enough_sizes(sizes: Sizes, needed: Needed) -> Sizes:
    """The sizes, the first of them enlarged that did not suffice; the same where all did.

    Only the first, because what is behind it has worked on half an event.

    Raises:
      ValueError: the graph is larger than 32-bit indices reach.
    """
    num_blocks, num_edges = int(needed.num_blocks), int(needed.num_edges)
    if num_blocks > sizes.num_blocks:
        return sizes._replace(num_blocks=bucket_size(num_blocks))
    if num_edges == TOO_MANY:
        raise ValueError(
            "the graph of this event has more edges than 32-bit indices reach; choose a larger "
            "min_count, more cells or fewer hits."
        )
    if num_edges > sizes.num_edges:
        return sizes._replace(num_edges=edge_capacity_for(num_edges))
    search = enough_search(
        sizes.search, int(needed.num_neighbors), int(needed.num_slots), bool(needed.is_unfinished)
    )
    return sizes._replace(search=search)


def is_exceeded(sizes: Sizes, needed: Needed) -> bool | Bool[Array, ""]:
    """Whether any of the sizes did not suffice, on either side of the border."""
    return (
        (needed.num_blocks > sizes.num_blocks)
        | (needed.num_edges > sizes.num_edges)
        | (needed.num_neighbors > sizes.search.num_neighbors)
        | (needed.num_slots > sizes.search.num_slots)
        | needed.is_unfinished
    )


@partial(jax.jit, static_argnames=("method", "sizes"))
def reconstruct(
    method: Method, sizes: Sizes, model: Model, hits: PaddedHits, settings: Settings
) -> Found:
    """From padded hits to labels.

    Args:
      method: networks and clusterer.
      sizes: capacities; `num_hits` is the length of `hits`.
      model: Voxel-Dynamics and weights.
      hits: the event.
      settings: thresholds and key.

    Returns:
      The clusters and the scored edges; of use only where `enough_sizes` says that `needed` fits.
    """
    found = candidates(sizes.num_blocks, sizes.num_edges, model, hits, settings.min_count)
    graph = found.graph
    scores = scored_graph(method.network, model.params[EDGE], model.batch_stats, graph)
    # Behind barriers the stages are compiled as they are one by one.
    scores = jax.lax.optimization_barrier(scores)
    label, membership, needed = clusters_of(
        method, sizes.search, model.params[CLUSTER], graph, scores, settings
    )
    return Found(
        label,
        membership,
        graph.senders,
        graph.receivers,
        scores.probability,
        scores.embedding,
        found.num_outside,
        needed._replace(num_blocks=found.num_blocks, num_edges=found.num_edges),
    )


@partial(jax.jit, static_argnames=("method", "sizes"))
def search_again(
    method: Method,
    sizes: SearchSizes,
    params: Any,
    hits: PaddedHits,
    found: Found,
    settings: Settings,
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"], Needed]:
    """`reconstruct` from its scored edges on, where the capacities of the search alone were short.

    Args:
      method: networks and clusterer.
      sizes: larger capacities.
      params: weights of the clusterer.
      hits: the event.
      found: what `reconstruct` found; its edges are complete.
      settings: as before.

    Returns:
      Labels, memberships and what is needed, as `reconstruct` finds them in these capacities.
    """
    graph = padded_graph(
        jnp.asarray(hits.position),
        jnp.asarray(hits.num_hits),
        found.senders,
        found.receivers,
        jnp.zeros_like(found.senders),
        jnp.asarray(found.needed.num_edges),
    )
    scores = Scores(found.embedding, found.probability)
    label, membership, needed = clusters_of(method, sizes, params, graph, scores, settings)
    before = found.needed
    return (
        label,
        membership,
        needed._replace(num_blocks=before.num_blocks, num_edges=before.num_edges),
    )


def needed_of(found: Candidates) -> Needed:
    """What the candidate graph alone needs."""
    return Needed(num_blocks=found.num_blocks, num_edges=found.num_edges)


@partial(jax.jit, static_argnames=("block_capacity", "edge_capacity"))
def candidates(
    block_capacity: int,
    edge_capacity: int,
    model: Model,
    hits: PaddedHits,
    min_count: Int32[Array | np.ndarray, ""],
) -> Candidates:
    """The candidate graph of some hits."""
    position, num_hits = jnp.asarray(hits.position), jnp.asarray(hits.num_hits)
    is_hit = jnp.arange(len(position), dtype=jnp.int32) < num_hits
    inside = is_hit & is_inside(jnp.asarray(model.space), position)
    # A hit in the middle of the detector takes the place of all that need no cell: those outside
    # would have the search open every node.
    centroid = jnp.asarray(model.index.centroids)[:1]
    cell = assign_cells(model.index, jnp.where(inside[:, None], position, centroid))
    cell = jnp.where(inside, cell, len(model.index.centroids))
    found = edges_of_cells(
        model.rows, cell, min_count, block_capacity=block_capacity, edge_capacity=edge_capacity
    )
    edges = found.edges
    # A graph that is not complete is of no use: without edges there is nothing more to do.
    num_edges = jnp.where(edges.is_overflow, 0, edges.num_edges)
    graph = padded_graph(
        position, num_hits, edges.senders, edges.receivers, edges.counts, num_edges
    )
    num_outside = (is_hit & ~inside).sum(dtype=jnp.int32)
    return Candidates(
        jax.lax.optimization_barrier(graph), found.num_blocks, edges.num_edges, num_outside
    )


@partial(jax.jit, static_argnums=0)
def scored_graph(tune: NetworkTune, params: Any, batch_stats: Any, graph: EventGraph) -> Scores:
    """Embeddings and edge probabilities by running BatchNorm statistics."""
    prediction = predict(tune, params, batch_stats, graph, is_symmetric=True)
    return Scores(prediction.embedding, jax.nn.sigmoid(prediction.logit.astype(jnp.float32)))


def clusters_of(
    method: Method,
    sizes: SearchSizes,
    params: Any,
    graph: EventGraph,
    scores: Scores,
    settings: Settings,
) -> tuple[Int32[Array, " hit"], Float32[Array, " hit"], Needed]:
    """Labels, memberships and what the search needs of its capacities."""
    kept = kept_edges(graph, scores.probability, settings.edge_threshold)
    kept = jax.lax.optimization_barrier(kept)
    needed = Needed()
    if method.cluster.cluster == "transformer":
        found = transformer_clusters(
            method.network,
            method.cluster,
            params,
            graph,
            *scores,
            kept.component,
            sizes,
            settings.key,
            settings.edge_threshold,
        )
        needed = needed._replace(
            num_neighbors=found.needed_neighbors,
            num_slots=found.needed_slots,
            is_unfinished=found.is_unfinished,
        )
        return by_first_hit(found.label), found.membership, needed
    if method.cluster.cluster == "cut":
        label = large_components(kept.component, method.cluster.min_hits)
    else:
        label = no_clusters(len(graph.nodes.mask))
    return label, (label >= 0).astype(jnp.float32), needed
