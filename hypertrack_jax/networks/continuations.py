"""Device side: which edges continue each edge at its end, and what the circle through both tells.

For each directed edge, the best of the edges of the hit at which it ends, by how well the two lie
on one helix. Hits are compared in blocks, each edge of a hit with every other.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from hypertrack_jax import device
from hypertrack_jax.graph.segment import put_rows
from hypertrack_jax.networks.features import LENGTH_SCALE, features_of_coordinates

NUM_END = 19
"""Inputs of the triplet filter for each end of a pair."""
NUM_ACROSS = 2
"""Inputs that compare both ends."""
FAR = 1e6
"""Mismatch of two edges that do not continue each other."""
UNROLLED = 2
"""Neighbours that a step of the loop looks at: reading and writing what was found costs more than a
look. With 4 it is no faster, and took 7 and 23 % longer to compile."""
LEAST_WIDTH = 16
"""Neighbours that every block of hits has room for; each width is compiled by itself."""
DIP, BEND, Z0, LOGIT = (20.0, 20.0), (10.0, 10.0), (2.0, 0.1), (0.3, 0.3)
"""What a mismatch weighs: the difference in dip angle (rad), that in curvature (2/m) or that of the
sine of the turn from the expected one, that in z0 (200 mm), and the logit of the continuation. They
are such that hits of one particle have mismatches of order 1."""
MOST_BEND, SURE_BEND = 3.0, 5.0
"""Largest curvature (2/m) that a turn is expected by, and largest mismatch of the triplet that it
comes from."""


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
    narrower = (num_neighbors >> k for k in (2, 1))
    widths = [*(width for width in narrower if width >= LEAST_WIDTH), num_neighbors]

    def put(width: int, index, found: Continuations) -> Continuations:
        row = starts[index], degrees[index]
        column = jnp.arange(width, dtype=jnp.int32)[None, :]
        is_edge = column < row[1][:, None]
        place = jnp.where(is_edge, row[0][:, None] + column, num_edges).reshape(-1)

        def placed(array, values):
            return put_rows(array, values.reshape(-1), place)

        return jax.tree.map(placed, found, _of_hits(chords, width, *row))

    found = Continuations(
        (jnp.zeros(num_edges, jnp.int32),) * 2,
        (jnp.full(num_edges, FAR),) * 2,
        (jnp.zeros(num_edges),) * 2,
        jnp.zeros(num_edges),
    )
    # Blocks of hits without edges come first, and then a loop for each width.
    largest = degrees[:, -1]
    first = (largest == 0).sum()
    for width in widths:
        end = (largest <= width).sum()
        found = jax.lax.fori_loop(first, end, partial(put, width), found)
        first = end
    return found


def _of_hits(
    chords: Chords,
    width: int,
    start: Int[Array, " hit"],
    degree: Int[Array, " hit"],
) -> Continuations:
    """The continuations of the edges of some hits, in a row of `width` for each, which suffices."""
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    place = start[:, None] + column
    is_edge = column < degree[:, None]
    a = Chords(*(part.at[jnp.where(is_edge, place, 0)].get(mode="clip") for part in chords))

    def look(k, state: Continuations) -> Continuations:
        # Behind the last column no hit has an edge.
        column = jnp.minimum(k, width - 1)
        b = Chords(*(part[:, column][:, None] for part in a))
        return compared(a, b, start[:, None] + k, degree[:, None] > k, state)

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
    return jax.lax.fori_loop(0, num_steps, look_at_several, begin)


def compared(
    a: Chords,
    b: Chords,
    edge: Int[Array, "..."],
    is_there: Bool[Array, "..."],
    found: Continuations,
) -> Continuations:
    """What has been found of edges `a`, once they have been compared with one edge each.

    Args:
      a: the edges.
      b: the edge that each may go on with, in shapes that broadcast with those of `a`.
      edge: the numbers of `b`.
      is_there: False where there is none.
      found: what was found before.
    """
    goes_on = (a.x * b.x + a.y * b.y + a.z * b.z < 0) & is_there
    turn = (a.y * b.x - a.x * b.y) / (a.length * b.length)
    expected = a.bend * (a.length + b.length) / LENGTH_SCALE
    bends = jnp.abs(a.kappa + b.kappa), jnp.abs(turn - expected)
    dip, z0 = jnp.abs(a.dip + b.dip), jnp.abs(a.z0 - b.z0)
    chance = jax.nn.sigmoid(b.logit)
    best, mismatch, soft = [], [], []
    for kind, bend in enumerate(bends):
        distance = DIP[kind] * dip + BEND[kind] * bend + Z0[kind] * z0
        new = jnp.where(goes_on, distance - LOGIT[kind] * b.logit, FAR)
        is_better = new < found.mismatch[kind]
        mismatch.append(jnp.where(is_better, new, found.mismatch[kind]))
        best.append(jnp.where(is_better, edge, found.edge[kind]))
        near = jnp.where(goes_on, chance * jnp.exp(-distance), 0.0)
        soft.append(found.soft_count[kind] + near)
    return Continuations(
        tuple(best), tuple(mismatch), tuple(soft), found.number + goes_on.astype(jnp.float32)
    )


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
