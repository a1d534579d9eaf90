"""Both sides: any number of candidate edges becomes a padded GraphsTuple of one of a few sizes.

Edges are sorted by receiver. Padding follows jraph's convention: real graph first, then one padding
graph that owns all padding nodes and edges. Every padding edge joins the last node to itself, so
that receivers stay sorted and no padding edge touches a real hit. Capacities come from a geometric
ladder, so that a compiled program serves many events.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from hypertrack_jax.capacities import capacity_for
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.events.topology import edge_labels

LEAST_EDGES = 4096
"""Smallest edge capacity."""
EDGES_PER_NODE = (1024, 128, 16, 8, 4, 2, 1)
"""Ratios of edge to node capacity, tried in this order."""


class Nodes(NamedTuple):
    """What a graph knows of its hits."""

    position: Float[Array, "hit 3"]
    """x, y, z in mm; 0 for padding."""
    particle: Int[Array, " hit"]
    """Particle index, or -1 for noise and padding."""
    weight: Float[Array, " hit"]
    """TrackML hit weight; 0 for padding."""
    mask: Bool[Array, " hit"]
    """True for real hits."""
    is_core: Any = None
    """[hit], False in a sector's halo, whose edges and seeds count in no loss; None: no halo."""


class Edges(NamedTuple):
    """What a graph knows of its directed edges."""

    count: Int[Array, " edge"]
    """Entry of the C-matrix (see `voxdyn`) for the cells of the edge's hits; 0 for padding."""
    label: Bool[Array, " edge"]
    """True where the edge is in the ground truth; False for padding and where truth is unknown."""
    mask: Bool[Array, " edge"]
    """True for real edges."""
    score: Any = None
    """[edge], logit of the filter; None for a graph that was not filtered."""


class EventGraph(jraph.GraphsTuple):
    """A jraph.GraphsTuple with `Nodes` and `Edges`, or the same with a leading axis over events."""

    nodes: Nodes
    edges: Edges
    senders: Int[Array, " edge"]
    receivers: Int[Array, " edge"]


class Bucket(NamedTuple):
    """Capacities for which a program is compiled."""

    num_nodes: int
    num_edges: int


def bucket_for(num_hits: int, num_edges: int) -> Bucket:
    """Smallest bucket with room for the edges, and for the hits and one padding node.

    Node capacity is tied to edge capacity, so that training compiles few programs. A node costs
    about as much as one and a half edges, so a 16th of the edge capacity is cheap, and suffices for
    all events with more than 16 edges per hit. The ratios 128 and 1024 bound the padding of denser
    graphs.
    """
    edge_capacity = capacity_for(num_edges, LEAST_EDGES)
    for edges_per_node in EDGES_PER_NODE:
        if num_hits < edge_capacity // edges_per_node:
            return Bucket(edge_capacity // edges_per_node, edge_capacity)
    return Bucket(max(edge_capacity, 2 ** (num_hits.bit_length())), edge_capacity)


def hit_graph(
    position: Float[np.ndarray, "hit 3"],
    senders: Shaped[np.ndarray, " edge"],
    receivers: Shaped[np.ndarray, " edge"],
    counts: Shaped[np.ndarray, " edge"],
    score: Shaped[np.ndarray, " edge"] | None = None,
    bucket: Bucket | None = None,
) -> EventGraph:
    """The padded graph of some hits, without truth, as NumPy arrays.

    Args:
      position: hit positions in mm.
      senders: hit index at the start of each edge.
      receivers: hit index at the end of each edge, in rising order.
      counts: C-matrix entry of each edge.
      score: the filter's logit of each edge, if there is a filter.
      bucket: capacities; by default the smallest that fit.

    Returns:
      A GraphsTuple of two graphs, the event and the padding.

    Raises:
      ValueError: the hits or edges do not fit into `bucket`.
    """
    num_hits, num_edges = len(position), len(senders)
    bucket = bucket or bucket_for(num_hits, num_edges)
    if num_hits >= bucket.num_nodes or num_edges > bucket.num_edges:
        raise ValueError(
            f"{num_hits} hits and {num_edges} edges are more than the {bucket.num_nodes - 1} hits "
            f"and {bucket.num_edges} edges of the bucket; take a larger one."
        )
    last_node = bucket.num_nodes - 1
    return EventGraph(
        nodes=Nodes(
            position=_padded(position, bucket.num_nodes, 0),
            particle=_padded(np.zeros(0, np.int32), bucket.num_nodes, NOISE),
            weight=_padded(np.zeros(0, np.float32), bucket.num_nodes, 0),
            mask=_padded(np.ones(num_hits, bool), bucket.num_nodes, False),
        ),
        edges=Edges(
            count=_padded(counts.astype(np.int32), bucket.num_edges, 0),
            label=_padded(np.zeros(0, bool), bucket.num_edges, False),
            mask=_padded(np.ones(num_edges, bool), bucket.num_edges, False),
            score=None if score is None else _padded(score, bucket.num_edges, 0),
        ),
        senders=_padded(senders.astype(np.int32), bucket.num_edges, last_node),
        receivers=_padded(receivers.astype(np.int32), bucket.num_edges, last_node),
        globals=None,
        n_node=_padded(np.full(1, num_hits, np.int32), 2, bucket.num_nodes - num_hits),
        n_edge=_padded(np.full(1, num_edges, np.int32), 2, bucket.num_edges - num_edges),
    )


def padded_graph(
    position: Float[Array, "hit 3"],
    num_hits: Int[Array, ""],
    senders: Int[Array, " edge"],
    receivers: Int[Array, " edge"],
    counts: Int[Array, " edge"],
    num_edges: Int[Array, ""],
    score: Float[Array, " edge"] | None = None,
) -> EventGraph:
    """`hit_graph` for jitted programs: the arrays already have the sizes of their bucket.

    Entries behind the hits and behind the edges are ignored.

    Args:
      position: hit positions in mm.
      num_hits: how many hits there are, fewer than rows of `position`.
      senders: hit index at the start of each edge.
      receivers: hit index at the end of each edge, in rising order.
      counts: C-matrix entry of each edge.
      num_edges: how many edges there are.
      score: the filter's logit of each edge, if there is a filter.
    """
    num_nodes, edge_capacity = len(position), len(senders)
    hit_mask = jnp.arange(num_nodes, dtype=jnp.int32) < num_hits
    edge_mask = jnp.arange(edge_capacity, dtype=jnp.int32) < num_edges
    return EventGraph(
        nodes=Nodes(
            position=jnp.where(hit_mask[:, None], position, 0),
            particle=jnp.full(num_nodes, NOISE, jnp.int32),
            weight=jnp.zeros(num_nodes, jnp.float32),
            mask=hit_mask,
        ),
        edges=Edges(
            count=jnp.where(edge_mask, counts, 0),
            label=jnp.zeros(edge_capacity, bool),
            mask=edge_mask,
            score=None if score is None else jnp.where(edge_mask, score, 0),
        ),
        senders=jnp.where(edge_mask, senders, num_nodes - 1),
        receivers=jnp.where(edge_mask, receivers, num_nodes - 1),
        globals=None,
        n_node=jnp.stack([num_hits, num_nodes - num_hits]),
        n_edge=jnp.stack([num_edges, edge_capacity - num_edges]),
    )


def event_graph(
    event: Event,
    senders: Shaped[np.ndarray, " edge"],
    receivers: Shaped[np.ndarray, " edge"],
    counts: Shaped[np.ndarray, " edge"],
    score: Shaped[np.ndarray, " edge"] | None = None,
    *,
    node2node: str,
    bucket: Bucket | None = None,
    is_core: Bool[np.ndarray, " hit"] | None = None,
) -> EventGraph:
    """`hit_graph` of an event with truth, its edges labelled by the topology `node2node`.

    `is_core` is that of `sectors.Sector`.

    Raises:
      ValueError: as `hit_graph`, or `node2node` is unknown.
    """
    graph = hit_graph(event.position, senders, receivers, counts, score, bucket)
    num_nodes, num_edges = len(graph.nodes.mask), len(graph.edges.mask)
    label = edge_labels(event, senders, receivers, node2node)
    return graph._replace(
        nodes=graph.nodes._replace(
            particle=_padded(event.hit_particle, num_nodes, NOISE),
            weight=_padded(event.hit_weight.astype(np.float32), num_nodes, 0),
            is_core=None if is_core is None else _padded(is_core, num_nodes, False),
        ),
        edges=graph.edges._replace(label=_padded(label, num_edges, False)),
    )


def core_edges(graph: EventGraph) -> Bool[Array, " edge"]:
    """True for the real edges whose hits are both in the core."""
    is_core = graph.nodes.is_core
    if is_core is None:
        return graph.edges.mask
    return graph.edges.mask & is_core[graph.senders] & is_core[graph.receivers]


def _padded(array: np.ndarray, capacity: int, value) -> Any:
    """The array, filled up with `value`. `Any`: it is NumPy where the graph's types say jax."""
    padded = np.full((capacity, *array.shape[1:]), value, array.dtype)
    padded[: len(array)] = array
    return padded
