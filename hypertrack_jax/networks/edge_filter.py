"""Device side: the filter, which takes most false edges out of a dense graph before the GNN.

On a graph of a full event a hit has a hundred neighbours, of which two or three are of its
particle. The filter looks at pairs of hits, and then at triplets: at how well the best edge that
continues a pair, at either end, lies on one helix with it. Pairs are scored by their geometry as
seen from the inner to the outer hit, so that a score belongs to a pair and not to a direction.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from hypertrack_jax import device
from hypertrack_jax.graph.pair_graph import PairGraph
from hypertrack_jax.graph.segment import put_rows
from hypertrack_jax.networks.cluster_shape import NUM_SHAPE, Clusters, shape_inputs
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
NUM_END = 19
"""Inputs of the triplet filter for each end of a pair."""
NUM_ACROSS = 2
"""Inputs that compare both ends."""
NUM_ROUNDS = 2
"""Rounds of the triplet filter, each on the pairs that the one before it left."""
FAR = 1e6
"""Mismatch of two edges that do not continue each other."""
UNROLLED = 4
"""Neighbours that a step of the loop looks at: reading and writing what was found costs more than a
look."""
LEAST_WIDTH = 32
"""Neighbours that every block of hits has room for; each width is compiled by itself."""
DIP, BEND, Z0, LOGIT = (20.0, 20.0), (10.0, 10.0), (2.0, 0.1), (0.3, 0.3)
"""What a mismatch weighs: the difference in dip angle (rad), that in curvature (2/m) or that of the
sine of the turn from the expected one, that in z0 (200 mm), and the logit of the continuation. They
are such that hits of one particle have mismatches of order 1."""
MOST_BEND, SURE_BEND = 3.0, 5.0
"""Largest curvature (2/m) that a turn is expected by, and largest mismatch of the triplet that it
comes from."""

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


class Chords(NamedTuple):
    """Directed edges as the triplet filter compares them; travel goes from sender to receiver."""

    x: Float[Array, " edge"]
    """Chord in mm."""
    y: Float[Array, " edge"]
    z: Float[Array, " edge"]
    length: Float[Array, " edge"]
    """Its transverse length, in mm."""
    dip: Float[Array, " edge"]
    """Angle out of the transverse plane, in radians."""
    kappa: Float[Array, " edge"]
    """Signed curvature of the circle through the beam line and both hits, in 2/m."""
    z0: Float[Array, " edge"]
    """Intercept of the helix, in 200 mm; the same for both directions."""
    logit: Float[Array, " edge"]
    """Score of the pair."""
    bend: Float[Array, " edge"]
    """Signed curvature by what continues the pair behind its sender, in 2/m; 0 where not known."""


def chords_of(
    coordinates: Float[Array, "hit 6"],
    senders: Int[Array, " edge"],
    receivers: Int[Array, " edge"],
    logit: Float[Array, " edge"],
    bend: Float[Array, " edge"],
) -> Chords:
    """The chords of directed edges."""
    first, second = coordinates[senders], coordinates[receivers]
    features = features_of_coordinates(first, second)
    x, y, z = (second - first)[:, :3].T
    length = jnp.sqrt(x**2 + y**2 + 1.0)
    dip = jnp.arctan2(z, length)
    return Chords(x, y, z, length, dip, features[:, 4], features[:, 6], logit, bend)


class Continuations(NamedTuple):
    """What continues each directed edge behind its receiver, by two mismatches.

    The first is with the helix from the beam line, the second looks at the chords alone: at how far
    the turn from one to the next is from that of the pair's `bend`.
    """

    edge: tuple[Int32[Array, "*edge"], ...]
    """The best edge; any where there is none."""
    mismatch: tuple[Float[Array, "*edge"], ...]
    """`FAR` where there is none."""
    soft_count: tuple[Float[Array, "*edge"], ...]
    """Compatible continuations, each weighed by its own probability."""
    number: Float[Array, "*edge"]
    """All that go on by less than a right angle."""


def continuations(
    chords: Chords,
    start: Int[Array, " hit"],
    degree: Int[Array, " hit"],
    num_neighbors: int,
) -> Continuations:
    """The best continuation of each edge among the edges of its receiver.

    Hits are compared in blocks of about the same degree, each hit's edges with each other. The
    result has no gradient.

    Args:
      chords: directed edges sorted by receiver.
      start: first edge of each receiver.
      degree: edges of each receiver.
      num_neighbors: the largest degree that there is.
    """
    chords = jax.lax.stop_gradient(chords)
    num_hits, num_edges = len(start), len(chords.logit)
    block = min(device.blocks().filter_hits, num_hits)
    missing = -num_hits % block
    rising = jnp.argsort(degree)
    starts = jnp.pad(start[rising], (missing, 0)).reshape(-1, block)
    degrees = jnp.pad(degree[rising], (missing, 0)).reshape(-1, block)
    narrower = (num_neighbors >> k for k in (3, 2, 1))
    widths = [*(width for width in narrower if width >= LEAST_WIDTH), num_neighbors]

    def put(index, found: Continuations) -> Continuations:
        row = starts[index], degrees[index]
        class_of = (row[1][-1] > jnp.array(widths[:-1], jnp.int32)).sum()
        branches = [partial(_of_hits, chords, width, num_neighbors) for width in widths]
        # The long arrays stay out of the switch, which would copy them.
        best = jax.lax.switch(class_of, branches, *row)
        column = jnp.arange(num_neighbors, dtype=jnp.int32)[None, :]
        is_edge = column < row[1][:, None]
        place = jnp.where(is_edge, row[0][:, None] + column, num_edges).reshape(-1)

        def placed(array, values):
            return put_rows(array, values.reshape(-1), place)

        return jax.tree.map(placed, found, best)

    nothing = Continuations(
        (jnp.zeros(num_edges, jnp.int32),) * 2,
        (jnp.full(num_edges, FAR),) * 2,
        (jnp.zeros(num_edges),) * 2,
        jnp.zeros(num_edges),
    )
    # Blocks of hits without edges come first.
    first = (degrees[:, -1] == 0).sum()
    return jax.lax.fori_loop(first, len(starts), put, nothing)


def _of_hits(
    chords: Chords,
    width: int,
    num_neighbors: int,
    start: Int[Array, " hit"],
    degree: Int[Array, " hit"],
) -> Continuations:
    """The continuations of the edges of some hits, a row of `num_neighbors` for each.

    No hit has more than `width` edges.
    """
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    place = start[:, None] + column
    is_edge = column < degree[:, None]
    a = Chords(*(part.at[jnp.where(is_edge, place, 0)].get(mode="clip") for part in chords))
    chance = jax.nn.sigmoid(a.logit)

    def look(k, state: Continuations) -> Continuations:
        # Behind the last column no hit has an edge.
        column = jnp.minimum(k, width - 1)
        b = Chords(*(part[:, column][:, None] for part in a))
        goes_on = (a.x * b.x + a.y * b.y + a.z * b.z < 0) & (degree[:, None] > k)
        turn = (a.y * b.x - a.x * b.y) / (a.length * b.length)
        expected = a.bend * (a.length + b.length) / LENGTH_SCALE
        bends = jnp.abs(a.kappa + b.kappa), jnp.abs(turn - expected)
        dip, z0 = jnp.abs(a.dip + b.dip), jnp.abs(a.z0 - b.z0)
        edge, mismatch, soft = [], [], []
        for kind, bend in enumerate(bends):
            distance = DIP[kind] * dip + BEND[kind] * bend + Z0[kind] * z0
            new = jnp.where(goes_on, distance - LOGIT[kind] * b.logit, FAR)
            is_better = new < state.mismatch[kind]
            mismatch.append(jnp.where(is_better, new, state.mismatch[kind]))
            edge.append(jnp.where(is_better, start[:, None] + k, state.edge[kind]))
            near = jnp.where(goes_on, chance[:, column][:, None] * jnp.exp(-distance), 0)
            soft.append(state.soft_count[kind] + near)
        return Continuations(
            tuple(edge), tuple(mismatch), tuple(soft), state.number + goes_on.astype(jnp.float32)
        )

    def full(value):
        return jnp.full(place.shape, value)

    begin = Continuations(
        (jnp.zeros_like(place),) * 2, (full(FAR),) * 2, (full(0.0),) * 2, full(0.0)
    )

    def look_at_several(step, state: Continuations) -> Continuations:
        for k in range(UNROLLED):
            state = look(UNROLLED * step + k, state)
        return state

    num_steps = (degree[-1] + UNROLLED - 1) // UNROLLED
    best = jax.lax.fori_loop(0, num_steps, look_at_several, begin)
    return jax.tree.map(lambda row: jnp.pad(row, ((0, 0), (0, num_neighbors - width))), best)


class End(NamedTuple):
    """What lies behind the receivers of some directed edges."""

    inputs: Float[Array, "one 19"]
    """What the triplet filter sees of it."""
    circle: Float[Array, "2 one"]
    """Signed curvature through three hits, by either mismatch, in 2/m; 0 where there are not."""
    is_found: Bool[Array, "2 one"]


def end_of(chords: Chords, found: Continuations, edge: Int[Array, " one"]) -> End:
    """The far end of some directed edges."""
    a = Chords(*(part[edge] for part in chords))
    return far_end(a, jax.tree.map(lambda column: column[edge], found), chords)


def far_end(a: Chords, found: Continuations, chords: Chords) -> End:
    """The same of the directed edges `a`; `found` tells which of `chords` continue them."""
    columns, circles, are_found = [], [], []
    for kind in (0, 1):
        b = Chords(*(part[found.edge[kind]] for part in chords))
        is_found = found.mismatch[kind] < FAR / 2
        cross = a.y * b.x - a.x * b.y
        inner = -(a.x * b.x + a.y * b.y)
        span = jnp.sqrt((a.x - b.x) ** 2 + (a.y - b.y) ** 2 + 1.0)
        # The turn from one chord to the next, and the circle through the three hits.
        sine = cross / (a.length * b.length)
        circle = sine * LENGTH_SCALE / span
        cosine = (inner - a.z * b.z) / jnp.sqrt((a.length**2 + a.z**2) * (b.length**2 + b.z**2))
        of_kind = [
            jnp.minimum(found.mismatch[kind], 5.0) / 3,
            jnp.clip(10 * jnp.abs(a.dip + b.dip), 0, 3),
            jnp.clip(jnp.abs(circle - a.kappa) * 3, 0, 3),
            jnp.clip(jnp.abs(circle + b.kappa) * 3, 0, 3),
            jnp.clip(jnp.abs(a.z0 - b.z0) * 2, 0, 3),
            10 * (1 - cosine),
            jnp.clip(b.logit, -6, 6) / 3,
            jnp.log(span) / 3 - 1,
        ]
        columns += [jnp.where(is_found, column, 3.0) for column in of_kind]
        columns.append(jnp.log(found.soft_count[kind] + 0.01) / 3)
        circles.append(jnp.where(is_found, circle, 0.0))
        are_found.append(is_found)
    columns.append(jnp.log(found.number + 1.0) / 3)
    inputs = jnp.stack([jnp.clip(column, -3, 3) for column in columns], axis=1)
    return End(inputs, jnp.stack(circles), jnp.stack(are_found))


def across(ends: Sequence[End]) -> Float[Array, "one 2"]:
    """How far the circles at both ends of pairs differ; those of one helix turn opposite ways."""
    apart = jnp.clip(jnp.abs(ends[0].circle + ends[1].circle) * 3, 0, 3)
    return jnp.where(ends[0].is_found & ends[1].is_found, apart, 3.0).T


def bend_before(found: Continuations, end: End, edge: Int[Array, " one"]) -> Float[Array, " one"]:
    """The curvature that the end expects of what lies at the other end of the same pairs."""
    is_sure = found.mismatch[1][edge] < SURE_BEND
    return jnp.where(is_sure, jnp.clip(-end.circle[1], -MOST_BEND, MOST_BEND), 0.0)


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
    size = min(device.blocks().filter_pairs, capacity)
    every = jnp.arange(capacity + -capacity % size, dtype=jnp.int32)
    blocks = jnp.minimum(every, capacity - 1).reshape(-1, size)
    scored = jax.lax.map(of_filled, blocks)
    return Scored(scored.logit.reshape(-1)[:capacity], scored.bend.reshape(-1, 2)[:capacity])
