"""Device side: the filter, which takes most false edges out of a dense graph before the GNN.

On a graph of a full event a hit has a hundred neighbours, of which two or three are of its
particle. The filter looks at pairs of hits, and then at triplets: at how well the best edge that
continues a pair, at either end, lies on one helix with it. Pairs are scored by their geometry as
seen from the inner to the outer hit, so that a score belongs to a pair and not to a direction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from hypertrack_jax import device
from hypertrack_jax.graph.pair_graph import PairGraph
from hypertrack_jax.networks.cluster_shape import NUM_SHAPE, Clusters, shape_inputs
from hypertrack_jax.networks.continuations import (
    NUM_ACROSS,
    NUM_END,
    across,
    bend_before,
    chords_of,
    continuations,
    end_of,
)
from hypertrack_jax.networks.features import (
    LENGTH_SCALE,
    count_feature,
    features_of_coordinates,
    helix_coordinates,
    scaled,
)
from hypertrack_jax.networks.mlp import apply_frozen

NUM_PAIR = 16
"""Inputs of the pair filter without the shape of clusters."""
NUM_ROUNDS = 2
"""Rounds of the triplet filter, each on the pairs that the one before it left."""

Layers = list[dict[str, Array]]
"""Kernel and bias of each layer of an MLP."""


def init_layers(key: PRNGKeyArray, widths: Sequence[int]) -> Layers:
    """Weights of an MLP, He-normal, biases zero."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"kernel": jax.random.normal(one, (i, o)) * (2 / i) ** 0.5, "bias": jnp.zeros(o)}
        for one, i, o in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def apply_layers(layers: Layers, x: Float[Array, "row feat"]) -> Float[Array, " row"]:
    """One number for each row: Linear layers with SiLU between them."""
    return apply_frozen([(layer["kernel"], layer["bias"]) for layer in layers], x)[:, 0]


def pair_inputs(
    coordinates: Float[Array, "hit 6"],
    degree: Int[Array, " hit"],
    one: Int[Array, " pair"],
    other: Int[Array, " pair"],
    count: Int[Array, " pair"],
    clusters: Clusters | None = None,
) -> Float[Array, "pair feat"]:
    """What the pair filter sees, the same for both orders of the hits.

    Mirroring an event at a plane through the beam line changes nothing, nor does one at z = 0 but
    for the slope of hits at one radius, which is not defined.

    Args:
      coordinates: `helix_coordinates` of the hits.
      degree: edges of each hit.
      one: a hit of each pair.
      other: the other one.
      count: C at the cells of both.
      clusters: of the hits, of a filter that looks at their shape.
    """
    first, second = coordinates[one], coordinates[other]
    is_swapped = is_outer(first, second)
    inner = jnp.where(is_swapped[:, None], second, first)
    outer = jnp.where(is_swapped[:, None], first, second)
    phi, dr, dz, deta, kappa, slope, z0, line = features_of_coordinates(inner, outer).T
    side = jnp.where(inner[:, 2] + outer[:, 2] < 0, -1.0, 1.0)
    distance = jnp.sqrt(((outer[:, :3] - inner[:, :3]) ** 2).sum(axis=1) + 1.0)
    degrees = jnp.log(degree[jnp.stack([one, other])].astype(jnp.float32) + 1.0)
    degrees = jnp.where(is_swapped, degrees[::-1], degrees) / 3 - 1
    inputs = jnp.stack(
        [
            jnp.abs(phi),
            dr,
            dz * side,
            deta * side,
            jnp.abs(kappa),
            slope * side,
            z0 * side,
            line * side,
            inner[:, 3] / LENGTH_SCALE,
            outer[:, 3] / LENGTH_SCALE,
            inner[:, 2] * side / LENGTH_SCALE,
            outer[:, 2] * side / LENGTH_SCALE,
            count_feature(count)[:, 0],
            degrees[0],
            degrees[1],
            jnp.log(distance) / 3 - 1,
        ],
        axis=1,
    )
    if clusters is None:
        return inputs
    ends = jnp.where(is_swapped, other, one), jnp.where(is_swapped, one, other)
    return jnp.concatenate([inputs, shape_inputs(coordinates, clusters, *ends)], axis=1)


def is_outer(first: Float[Array, "pair 6"], second: Float[Array, "pair 6"]) -> Bool[Array, " pair"]:
    """Whether the first hit is farther from the origin; at one distance z, x and y decide."""
    x1, y1, z1, r1 = first[:, :4].T
    x2, y2, z2, r2 = second[:, :4].T
    far1, far2 = r1**2 + z1**2, r2**2 + z2**2
    # Without selecting between truth values, which ONNX's runtimes do not do.
    is_more = (x1 > x2) | ((x1 == x2) & (y1 > y2))
    is_more = (z1 > z2) | ((z1 == z2) & is_more)
    return (far1 > far2) | ((far1 == far2) & is_more)


class FilterWeights(NamedTuple):
    """The filter, as a tree of arrays."""

    pairs: Layers
    triplets: list[Layers]
    """Of each round."""
    thresholds: Float[Array, "stage"]
    """Smallest logit that the pairs and the rounds keep."""
    length_scale: Float[Array, ""]
    """That of the tune it was trained by, see `NetworkTune`."""


def filter_coordinates(
    weights: FilterWeights, position: Float[Array, "hit 3"]
) -> Float[Array, "hit 6"]:
    """What a filter sees of positions in mm."""
    return helix_coordinates(scaled(position, jax.lax.stop_gradient(weights.length_scale)))


def needs_cells(weights: FilterWeights) -> bool:
    """Whether the filter looks at the shape of clusters."""
    return weights.pairs[0]["kernel"].shape[0] != NUM_PAIR


def init_filter(
    key: PRNGKeyArray, width: int, cells: str = "none", length_scale: float = LENGTH_SCALE
) -> FilterWeights:
    """Weights to begin a training with, of a width and a choice of `FilterTune.cells`.

    All thresholds are 0.
    """
    num_pair = NUM_PAIR + (NUM_SHAPE if cells == "shape" else 0)
    keys = jax.random.split(key, 1 + NUM_ROUNDS)
    num_inputs = num_pair + 1 + 2 * NUM_END + NUM_ACROSS
    return FilterWeights(
        init_layers(keys[0], (num_pair, width, width, 1)),
        [init_layers(one, (num_inputs, width, width, 1)) for one in keys[1:]],
        jnp.zeros(1 + NUM_ROUNDS),
        jnp.float32(length_scale),
    )


class Scored(NamedTuple):
    """What a round of the triplet filter says of each pair."""

    logit: Float[Array, " pair"]
    bend: Float[Array, "pair 2"]
    """`Chords.bend` of its edges into `one` and into `other`, for the next round."""


def no_bend(capacity: int) -> Float[Array, "pair 2"]:
    """What the first round knows of the turns of so many pairs."""
    return jnp.zeros((capacity, 2))


def triplet_scores(
    layers: Layers,
    coordinates: Float[Array, "hit 6"],
    degree: Int[Array, " hit"],
    graph: PairGraph,
    bend: Float[Array, "pair 2"],
    num_neighbors: int,
    clusters: Clusters | None = None,
) -> Scored:
    """The score of each pair by what continues it at either end.

    Args:
      layers: of this round.
      coordinates: `helix_coordinates` of the hits.
      degree: edges of each hit in the graph that the pair filter saw.
      graph: the pairs that are left, with the score of the round before.
      bend: what the round before found of their turns.
      num_neighbors: the largest degree in the graph.
      clusters: as in `pair_inputs`.
    """
    pairs, capacity = graph.pairs, len(graph.pairs.one)
    is_other = graph.receivers == pairs.other[graph.pair]
    bends = bend[graph.pair, is_other.astype(jnp.int32)]
    logit = pairs.logit[graph.pair]
    chords = chords_of(coordinates, graph.senders, graph.receivers, logit, bends)
    found = continuations(chords, graph.start, graph.degree, num_neighbors)

    def of_block(block: Int[Array, " some"]) -> Scored:
        one, other, count = (column[block] for column in pairs[:3])
        edges = [into[block] for into in graph.edge_to]
        ends = [end_of(chords, found, into) for into in edges]
        is_swapped = is_outer(coordinates[one], coordinates[other])[:, None]
        inputs = [
            pair_inputs(coordinates, degree, one, other, count, clusters),
            pairs.logit[block][:, None] / 3,
            jnp.where(is_swapped, ends[1].inputs, ends[0].inputs),
            jnp.where(is_swapped, ends[0].inputs, ends[1].inputs),
            across(ends),
        ]
        at_other, at_one = (bend_before(found, *end) for end in zip(ends, edges, strict=True))
        return Scored(
            apply_layers(layers, jnp.concatenate(inputs, axis=1)),
            jnp.stack([at_one, at_other], axis=1),
        )

    def of_filled(block: Int[Array, " some"]) -> Scored:
        nothing = Scored(jnp.zeros(size), no_bend(size))
        return jax.lax.cond(block[0] < pairs.number, of_block, lambda _: nothing, block)

    # In blocks, so that the inputs of all pairs are never in memory together.
    size = device.size_of_block(device.blocks().filter_pairs, capacity)
    every = jnp.arange(capacity + -capacity % size, dtype=jnp.int32)
    blocks = jnp.minimum(every, capacity - 1).reshape(-1, size)
    scored = jax.lax.map(of_filled, blocks)
    return Scored(scored.logit.reshape(-1)[:capacity], scored.bend.reshape(-1, 2)[:capacity])
