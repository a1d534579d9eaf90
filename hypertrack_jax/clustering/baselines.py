"""Device side: clusters straight from the edge scores, without a network."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from hypertrack_jax.clustering.components import connected_components
from hypertrack_jax.graph.segment import segment_sum


@partial(jax.jit, static_argnames="num_nodes")
def cut(
    probability: Float[Array, " edge"],
    senders: Int32[Array, " edge"],
    receivers: Int32[Array, " edge"],
    edge_mask: Bool[Array, " edge"],
    num_nodes: int,
    edge_threshold: float | Float[Array, ""] = 0.55,
    min_hits: int | Int[Array, ""] = 4,
) -> Int32[Array, " node"]:
    """Clusters are the connected components of the edges above a threshold.

    Step 1 of HyperTrack's clustering (arXiv:2309.14113) alone. Threshold and size are not static:
    a scan over them compiles once.

    Args:
      probability: probability of each edge to be true.
      senders: one end of each edge; an edge that passes in either direction joins its ends, and a
        self-loop joins nothing.
      receivers: the other end.
      edge_mask: True where the edge is real.
      num_nodes: number of nodes, padding included.
      edge_threshold: an edge is kept when its probability is above it.
      min_hits: a component with fewer hits is noise; at least 2, or padding nodes, which have no
        edges, become clusters.

    Returns:
      Cluster of each node: 0, 1, ... without gaps, in the order of the clusters' first
      hits; -1 for noise and padding.
    """
    component = connected_components(
        senders, receivers, edge_mask & (probability > edge_threshold), num_nodes
    )
    return large_components(component, min_hits)


@jax.jit
def large_components(
    component: Int32[Array, " node"], min_hits: int | Int[Array, ""]
) -> Int32[Array, " node"]:
    """The components of at least `min_hits` nodes, numbered as `cut` numbers its clusters.

    Args:
      component: label of each node, the smallest node of its component.
      min_hits: at least 2, as for `cut`.
    """
    size = segment_sum(jnp.ones_like(component), component, len(component), sorted_ids=False)
    is_cluster = size >= min_hits
    # A component is named after its smallest node; all other names have size 0.
    number = jnp.cumsum(is_cluster, dtype=jnp.int32) - 1
    return jnp.where(is_cluster, number, -1)[component]


def no_clusters(num_nodes: int) -> Int32[Array, " node"]:
    """-1 for every node: the result of `none`, with which only the edges are judged."""
    return jnp.full(num_nodes, -1, jnp.int32)
