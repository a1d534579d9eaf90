"""Device side: the filter on the pairs of an event, from the look-up to the pairs that are left."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hypertrack_jax import device
from hypertrack_jax.graph.pair_graph import (
    HitPairs,
    PairGraph,
    no_pairs,
    pair_graph,
    pairs_appended,
    pairs_kept,
    rows_kept,
)
from hypertrack_jax.networks.cluster_shape import Clusters
from hypertrack_jax.networks.edge_filter import (
    FilterWeights,
    apply_layers,
    filter_coordinates,
    no_bend,
    pair_inputs,
    triplet_scores,
)
from hypertrack_jax.reconstruction.capacities import FilterCapacities
from hypertrack_jax.voxdyn.hit_pairs import PairLists, pair_block
from hypertrack_jax.voxdyn.lookup import TOO_MANY


class FilteredPairs(NamedTuple):
    """What the filter leaves of an event."""

    graph: PairGraph
    """The pairs, each with its last score."""
    needed: FilterCapacities
    is_overflow: Bool[Array, ""]
    """True where a capacity was too small: the pairs are not complete."""


def filtered_pairs(
    weights: FilterWeights,
    position: Float[Array, "hit 3"],
    lists: PairLists,
    capacities: FilterCapacities,
    clusters: Clusters | None = None,
) -> FilteredPairs:
    """The pairs that the filter keeps.

    Args:
      weights: the filter.
      position: positions in mm.
      lists: the pairs that C joins.
      capacities: room for those that the pair filter keeps, and for those of each round.
      clusters: of the hits, of a filter that looks at their shape.
    """
    coordinates, num_hits = filter_coordinates(weights, position), len(position)
    pairs = scored_pairs(weights, coordinates, lists, capacities.num_pairs, clusters)
    # Where there are more raw pairs than 32 bits count, none were looked at.
    number = jnp.where(lists.num_raw == TOO_MANY, TOO_MANY, pairs.number)
    graph, bend = pair_graph(pairs, num_hits), no_bend(capacities.num_pairs)
    found: list[Any] = [number]
    rounds = zip(
        weights.triplets, weights.thresholds[1:], capacities[1::2], capacities[2::2], strict=True
    )
    for layers, threshold, num_neighbors, room in rounds:
        logit, bend = triplet_scores(
            layers, coordinates, lists.degree, graph, bend, num_neighbors, clusters
        )
        is_kept, pairs = logit >= threshold, graph.pairs._replace(logit=logit)
        bend = rows_kept(bend, pairs, is_kept, room)
        pairs = pairs_kept(pairs, is_kept, room)
        found += [graph.degree.max(), pairs.number]
        graph = pair_graph(pairs, num_hits)
    is_overflow = jnp.stack([n > c for n, c in zip(found, capacities, strict=True)]).any()
    needed: Any = FilterCapacities(*found)
    return FilteredPairs(graph, needed, is_overflow)


def scored_pairs(
    weights: FilterWeights,
    coordinates: Float[Array, "hit 6"],
    lists: PairLists,
    capacity: int,
    clusters: Clusters | None = None,
) -> HitPairs:
    """The raw pairs that the pair filter keeps, with their scores.

    The raw pairs come in blocks, and are never whole in memory.

    Args:
      weights: the filter.
      coordinates: `helix_coordinates` of the hits.
      lists: the pairs that C joins.
      capacity: room for those that are kept.
      clusters: as in `filtered_pairs`.
    """

    def add_block(state):
        first, pairs = state
        raw = pair_block(lists, first, size=size)
        inputs = pair_inputs(coordinates, lists.degree, raw.one, raw.other, raw.count, clusters)
        logit = apply_layers(weights.pairs, inputs)
        scored = HitPairs(raw.one, raw.other, raw.count, logit, jnp.int32(0))
        is_kept = raw.mask & (logit >= weights.thresholds[0])
        return first + size, pairs_appended(pairs, scored, is_kept)

    def is_unfinished(state):
        return state[0] < num_raw

    size = device.size_of_block(device.blocks().filter_pairs, capacity)
    num_raw = jnp.where(lists.num_raw == TOO_MANY, 0, lists.num_raw)
    return jax.lax.while_loop(is_unfinished, add_block, (jnp.int32(0), no_pairs(capacity)))[1]
