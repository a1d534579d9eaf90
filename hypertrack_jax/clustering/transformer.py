"""Device side: edge scores and hit embeddings to clusters, by the set transformer (section 5)."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from hypertrack_jax import device
from hypertrack_jax.clustering.components import connected_components
from hypertrack_jax.clustering.micrographs import Micrographs
from hypertrack_jax.clustering.neighbors import Neighbors, at_hits, kept_neighbors
from hypertrack_jax.clustering.search import (
    FoundClusters,
    Members,
    SearchHits,
    SearchSizes,
    only_tracks,
    open_hits,
    score_needed,
    search_clusters,
    with_left_over,
)
from hypertrack_jax.clustering.thresholds import FIXED, fisher_threshold
from hypertrack_jax.graph.event_graph import EventGraph, Nodes
from hypertrack_jax.networks.features import LENGTH_SCALE, scaled
from hypertrack_jax.networks.set_transformer import init_set_transformer, membership_logit
from hypertrack_jax.tunes.tune import ClusterTune, NetworkTune

THRESHOLD = "threshold"
"""Name of the learnable threshold, a logit, among the parameters of the clusterer."""
TRANSFORMER = "transformer"
"""Name of the set transformer among them."""
WIDTHS = (16, 24)
"""Slots that a chunk may be cut to: enough for most tracks. Each width is compiled."""


def init_clusterer(tune: NetworkTune, key: PRNGKeyArray) -> dict[str, Any]:
    """Fresh parameters: those of the set transformer, and a soft threshold of 0.5."""
    return {TRANSFORMER: init_set_transformer(tune, key), THRESHOLD: jnp.zeros(())}


def hit_tokens(
    tune: NetworkTune, embedding: Float[Array, "hit feat"], position: Float[Array, "hit 3"]
) -> Float[Array, "hit token"]:
    """[z, x] of every hit: x in mm as published, in metres where node features are scaled, too."""
    scale = 1.0 if tune.node_features == "cartesian" else LENGTH_SCALE
    position = scaled(position, tune.length_scale)
    return jnp.concatenate([embedding, (position / scale).astype(embedding.dtype)], axis=1)


def logits_of(
    tune: NetworkTune,
    params: dict[str, Any],
    tokens: Float[Array, "hit token"],
    micrographs: Micrographs,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "seed slot"]:
    """Membership logit of every hit of every micrograph; meaningless but finite in empty slots.

    Micrographs differ in size, and many of a round are empty. They are sorted by size and taken in
    chunks, each in the smallest of a few widths that holds it, and not at all where it is
    empty; in the backward pass a chunk is computed again, so that only its inputs are kept.
    """
    num_seeds, num_slots = micrographs.hit.shape
    order = jnp.argsort(-_num_filled(micrographs.hit, len(tokens)))
    size = chunk_size(num_seeds)
    missing = -num_seeds % size
    hit, pivot = (
        jnp.pad(index[order], ((0, missing), (0, 0)), constant_values=len(tokens))
        for index in (micrographs.hit, micrographs.pivot)
    )

    @jax.checkpoint
    def chunk_logits(params, tokens, chunk: tuple[Int32[Array, "row slot"], Int32[Array, "row p"]]):
        return _chunk_logits(tune, params, tokens, *chunk, dtype)

    chunks = tuple(index.reshape(-1, size, index.shape[1]) for index in (hit, pivot))
    logit = lax.map(lambda chunk: chunk_logits(params, tokens, chunk), chunks)
    return logit.reshape(-1, num_slots)[:num_seeds][jnp.argsort(order)]


def chunk_size(num_seeds: int) -> int:
    """Micrographs of a round that go through the transformer together, by how many there are."""
    sizes = device.blocks()
    size = min(max(sizes.few_micrographs, num_seeds // 64), sizes.many_micrographs)
    return size if device.is_cpu() else min(size, num_seeds)


def members_of(
    kind: str,
    logit: Float[Array, "seed slot"],
    mask: Bool[Array, "seed slot"],
    soft_logit: Float[Array, ""],
) -> Members:
    """Probabilities and the hits that pass the threshold.

    Args:
      kind: `fixed`, 0.5; `fisher`, one for each micrograph; `soft`, the learnt one.
      logit: membership logits.
      mask: True where there is a hit.
      soft_logit: logit of the learnt threshold.
    """
    probability = jnp.where(mask, jax.nn.sigmoid(logit), 0)
    if kind == "fisher":
        threshold = fisher_threshold(probability, mask)[:, None]
    elif kind == "soft":
        threshold = jax.nn.sigmoid(soft_logit).astype(logit.dtype)
    else:
        threshold = jnp.asarray(FIXED, logit.dtype)
    return Members(probability, mask & (probability > threshold))


def _chunk_logits(
    tune: NetworkTune,
    params: dict[str, Any],
    tokens: Float[Array, "hit token"],
    hit: Int32[Array, "row slot"],
    pivot: Int32[Array, "row pivot"],
    dtype: DTypeLike,
) -> Float[Array, "row slot"]:
    """Logits of some micrographs, in the smallest width that holds all of them."""
    num_hits, num_slots = len(tokens), hit.shape[1]
    widths = [width for width in WIDTHS if width < num_slots] + [num_slots]

    def at_width(width: int) -> Float[Array, "row slot"]:
        logit = membership_logit(
            tune,
            params[TRANSFORMER],
            at_hits(tokens, hit[:, :width], 0),
            hit[:, :width] < num_hits,
            at_hits(tokens, pivot, 0),
            pivot < num_hits,
            dtype,
        )
        return jnp.pad(logit, ((0, 0), (0, num_slots - width)))

    branches = [lambda: jnp.zeros(hit.shape, dtype)] + [partial(at_width, w) for w in widths]
    largest = _num_filled(hit, num_hits).max()
    fits = jnp.searchsorted(jnp.asarray([0, *widths], jnp.int32), largest)
    return lax.switch(fits, branches)


def _num_filled(hit: Int32[Array, "row slot"], num_hits: int) -> Int32[Array, " row"]:
    return (hit < num_hits).sum(axis=1, dtype=jnp.int32)


class KeptEdges(NamedTuple):
    """What the edges above a threshold make of an event."""

    component: Int32[Array, " hit"]
    """Connected components, as `connected_components` names them."""
    neighbors: Neighbors
    """The kept edges of each hit."""


def kept_edges(
    graph: EventGraph,
    probability: Float[Array, " edge"],
    edge_threshold: Float[Array, ""],
    num_neighbors: int,
) -> KeptEdges:
    """Components and neighbours by the edges above a threshold.

    Args:
      graph: the candidate graph, padded.
      probability: probability of every edge.
      edge_threshold: an edge is kept when its probability is above it.
      num_neighbors: length of the rows of neighbours.
    """
    num_hits = len(graph.nodes.mask)
    is_kept = graph.edges.mask & (probability > edge_threshold)
    component = connected_components(graph.senders, graph.receivers, is_kept, num_hits)
    edges = probability, graph.senders, graph.receivers, graph.edges.mask
    return KeptEdges(component, kept_neighbors(*edges, num_hits, num_neighbors, edge_threshold))


def transformer_clusters(
    network: NetworkTune,
    cluster: ClusterTune,
    params: dict[str, Any],
    nodes: Nodes,
    embedding: Float[Array, "hit feat"],
    kept: KeptEdges,
    sizes: SearchSizes,
    key: PRNGKeyArray,
    dtype: DTypeLike = jnp.float32,
) -> FoundClusters:
    """Clusters of an event whose edges have been scored.

    Args:
      network: the network that the parameters belong to.
      cluster: how the search goes; its thresholds of edges are not used.
      params: parameters of the clusterer, as `init_clusterer` makes them.
      nodes: the hits, padded.
      embedding: z of every hit.
      kept: components and neighbours by the edges above the threshold.
      sizes: capacities.
      key: decides all random choices.
      dtype: type of the arrays inside the transformer.

    Returns:
      The clusters, with flags for capacities that did not suffice.
    """
    num_hits, neighbors = len(nodes.mask), kept.neighbors
    is_open = open_hits(kept.component, nodes.mask, cluster.min_hits)
    hits = SearchHits(nodes.position, kept.component, is_open)
    tokens = hit_tokens(network, embedding, nodes.position)

    def membership(micrographs: Micrographs) -> Members:
        logit = logits_of(network, params, tokens, micrographs, dtype)
        mask = micrographs.hit < num_hits
        return members_of(
            cluster.membership_threshold, logit.astype(jnp.float32), mask, params[THRESHOLD]
        )

    core_hits = cluster.min_hits if cluster.core_hits is None else cluster.core_hits
    with_cores = replace(cluster, min_hits=core_hits)
    found = search_clusters(hits, neighbors, membership, with_cores, sizes, key)
    if cluster.core_hits is not None:
        found = with_left_over(found, neighbors)
    min_score = cluster.min_score
    if min_score is not None:
        min_score = score_needed(min_score, nodes.mask.sum())
    return only_tracks(found, cluster.min_hits, min_score)
