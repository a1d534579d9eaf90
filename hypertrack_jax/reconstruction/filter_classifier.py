"""Both sides: the filter as ACTS's edge classifiers take it, in ONNX.

Like the edge predictor in `edge_classifier`, the filter is written once more here, in plain
operations on all edges at once and without padding. Edges may have any order: a loop takes an edge
of every hit at a time, and ends when no hit has one left. Tests hold it to the product.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.cells import Cells
from hypertrack_jax.graph.segment import segment_max, segment_sum
from hypertrack_jax.networks.cluster_shape import Clusters
from hypertrack_jax.networks.continuations import (
    FAR,
    Chords,
    Continuations,
    across,
    bend_before,
    chords_of,
    compared,
    far_end,
)
from hypertrack_jax.networks.edge_filter import (
    FilterWeights,
    apply_layers,
    filter_coordinates,
    is_outer,
    needs_cells,
    pair_inputs,
)
from hypertrack_jax.reconstruction.onnx_file import onnx_file

DROPPED = -1e4
"""Logit of an edge that an earlier stage than the last one has dropped."""
NUM_CLUSTER = 15
"""Columns of the nodes behind x, y, z, for a filter that looks at the shape of clusters: `extent`
(2), `slant`, `charge`, `is_cut` (2) and `frame` (9) of `Cells`."""
THRESHOLD = "threshold"
"""Smallest logit that the filter keeps, in the metadata of the file."""


def filter_logits(
    weights: FilterWeights,
    node_features: Float[Array, "hit feat"],
    edge_index: Int[Array, "2 edge"],
    edge_features: Float[Array, "edge 1"],
) -> Float[Array, " edge"]:
    """The filter's last logit of each edge.

    Args:
      weights: the filter.
      node_features: x, y, z of each hit in mm; and its cluster, see `NUM_CLUSTER`, for a filter
        that looks at it.
      edge_index: sender and receiver of each edge of the whole candidate graph; both directions and
        self-loops are there, in any order.
      edge_features: entry of C for the cells of each edge's hits.

    Returns:
      The logit of an edge, the same for both directions; `DROPPED` for edges that an earlier stage
      drops, and for self-loops. The filter keeps those from the last threshold on.
    """
    senders, receivers = edge_index[0], edge_index[1]
    count = edge_features[:, 0].astype(jnp.int32)
    clusters = _clusters(node_features) if needs_cells(weights) else None
    coordinates = filter_coordinates(weights, node_features[:, :3])
    num_hits = node_features.shape[0]
    degree = segment_sum(jnp.ones_like(receivers), receivers, num_hits, sorted_ids=False)
    of_pair = pair_inputs(coordinates, degree, senders, receivers, count, clusters)
    logit = apply_layers(weights.pairs, of_pair)
    is_kept = senders != receivers
    number = jnp.cumsum(jnp.ones_like(receivers)) - 1
    is_swapped = is_outer(coordinates[senders], coordinates[receivers])[:, None]
    # Of an edge as it is, and of its way back.
    bends = (jnp.zeros_like(logit),) * 2
    for layers, threshold in zip(weights.triplets, weights.thresholds[:-1], strict=True):
        is_kept &= logit >= threshold
        there = chords_of(coordinates, senders, receivers, logit, bends[0])
        back = chords_of(coordinates, receivers, senders, logit, bends[1])
        found = _continuations((there, back), (receivers, senders), is_kept, num_hits)
        ends = [far_end(*way, there) for way in zip((back, there), found[::-1], strict=True)]
        inputs = [
            of_pair,
            logit[:, None] / 3,
            jnp.where(is_swapped, ends[1].inputs, ends[0].inputs),
            jnp.where(is_swapped, ends[0].inputs, ends[1].inputs),
            across(ends),
        ]
        at_receiver, at_sender = (
            bend_before(*way, number) for way in zip(found[::-1], ends, strict=True)
        )
        bends = at_receiver, at_sender
        logit = apply_layers(layers, jnp.concatenate(inputs, axis=1))
    return jnp.where(is_kept, logit, DROPPED)


def node_features_of(
    position: Float[np.ndarray, "hit 3"], cells: Cells | None = None
) -> Float[np.ndarray, "hit feat"]:
    """The first input of `filter_logits`; with the clusters where a filter looks at them."""
    if cells is None:
        return position.astype(np.float32)
    columns = [
        position,
        cells.extent,
        cells.slant[:, None],
        cells.charge[:, None],
        cells.is_cut,
        cells.frame.reshape(-1, 9),
    ]
    return np.concatenate([column.astype(np.float32) for column in columns], axis=1)


def export_filter(weights: FilterWeights | None) -> bytes:
    """The filter as an ONNX file for any numbers of hits and edges.

    Its inputs are those of `filter_logits`, `edge_index` of 64 bits; its output is `logit`. The
    metadata has the `THRESHOLD`: ACTS takes the sigmoid of it as its cut.

    Raises:
      MissingPackageError: jax2onnx is not installed.
      UserError: there is no filter.
    """
    if weights is None:
        raise UserError("the model has no filter; choose a model with one, such as positions.")
    constants = jax.tree.map(np.asarray, weights)
    return onnx_file(
        lambda *arrays: filter_logits(constants, *arrays),
        3 + (NUM_CLUSTER if needs_cells(weights) else 0),
        1,
        {THRESHOLD: repr(float(weights.thresholds[-1]))},
    )


def _clusters(node_features: Float[Array, "hit feat"]) -> Clusters:
    return Clusters(
        extent=node_features[:, 3:5],
        slant=node_features[:, 5],
        charge=node_features[:, 6],
        is_cut=node_features[:, 7:9] > 0.5,
        frame=node_features[:, 9:18].reshape(-1, 3, 3),
    )


def _continuations(
    ways: tuple[Chords, Chords],
    tos: tuple[Int[Array, " edge"], Int[Array, " edge"]],
    is_kept: Bool[Array, " edge"],
    num_hits: int,
) -> list[Continuations]:
    """What continues each edge and each way back, see `continuations`.

    Args:
      ways: the edges, and their ways back.
      tos: the hits at which either ends.
      is_kept: the edges that are left, which alone continue others.
      num_hits: number of hits.
    """
    chords, receivers = ways[0], tos[0]
    number = jnp.cumsum(jnp.ones_like(receivers)) - 1
    none, nothing = jnp.zeros_like(receivers), jnp.zeros_like(chords.x)

    def before(last: Int[Array, " hit"]) -> Int[Array, " hit"]:
        """The next edge into each hit, by falling numbers; negative where none is left."""
        is_left = is_kept & (number < last[receivers])
        return segment_max(jnp.where(is_left, number, -1), receivers, num_hits, sorted_ids=False)

    def look(state):
        last, *found = state
        looked = []
        for a, to, best in zip(ways, tos, found, strict=True):
            edge = last[to]
            b = Chords(*(part[jnp.maximum(edge, 0)] for part in chords))
            looked.append(compared(a, b, edge, edge >= 0, best))
        return before(last), *looked

    begin = Continuations((none,) * 2, (nothing + FAR,) * 2, (nothing,) * 2, nothing)
    last = before(jnp.zeros_like(segment_sum(number, receivers, num_hits)) + receivers.shape[0])
    _, *found = jax.lax.while_loop(lambda state: state[0].max() >= 0, look, (last, begin, begin))
    return found
