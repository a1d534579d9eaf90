"""A toy event as a graph, without Voxel-Dynamics: all true edges, and false ones at random."""

import jax
import numpy as np
from toy import helix_event

from hypertrack_jax.events.event import Event
from hypertrack_jax.graph.event_graph import Bucket, EventGraph, event_graph
from hypertrack_jax.tunes.tune import NetworkTune

SMALL_NETWORK = NetworkTune(num_layers=2, latent_dim=16, embedding_dim=8, edge_mlp_dims=(6, 6))
"""A network of the published kind that compiles quickly, wide enough for what wide latents take."""


def toy_graph(
    seed: int = 0, num_particles: int = 4, num_false: int = 60, bucket: Bucket | None = None
) -> EventGraph:
    """The graph of a helix event; `bucket` None gives one without padded edges."""
    event = helix_event(seed, num_particles)
    edges = candidate_edges(event, seed, num_false)
    if bucket is None:
        bucket = Bucket(len(event.position) + 1, len(edges[0]))
    return event_graph(event, *edges, node2node="hyper", bucket=bucket)


def candidate_edges(event: Event, seed: int, num_false: int) -> tuple[np.ndarray, ...]:
    """Senders, receivers and counts, sorted by receiver.

    The edges are symmetric: every pair of hits of one particle, every hit with itself, and up to
    `num_false` other pairs.
    """
    num_hits = len(event.position)
    particle = event.hit_particle
    joined = (particle[:, None] == particle[None, :]) & (particle[:, None] >= 0)
    joined |= np.eye(num_hits, dtype=bool)
    ends = np.random.default_rng(seed).integers(0, num_hits, (2, num_false))
    joined[ends[0], ends[1]] = joined[ends[1], ends[0]] = True
    receivers, senders = (side.astype(np.int32) for side in np.nonzero(joined))
    return senders, receivers, np.ones(len(senders), np.int32)


def permute_hits(graph: EventGraph, order: np.ndarray) -> tuple[EventGraph, np.ndarray]:
    """The graph with node `order[i]` in place i, and the old place of each edge in it."""
    new_place = np.argsort(order)
    senders, receivers = new_place[graph.senders], new_place[graph.receivers]
    edge_order = np.lexsort((senders, receivers))
    permuted = graph._replace(
        nodes=jax.tree.map(lambda array: array[order], graph.nodes),
        edges=jax.tree.map(lambda array: array[edge_order], graph.edges),
        senders=senders[edge_order].astype(np.int32),
        receivers=receivers[edge_order].astype(np.int32),
    )
    return permuted, edge_order
