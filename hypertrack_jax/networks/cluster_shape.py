"""Device side: what the shape of clusters says of a pair of hits, and of the particle at a hit.

A particle of direction d crosses p channels along an axis of its module, see `Cells.frame`, and
fires 1 + floor(p) or one channel more, wherever it enters. Neither the sign of d nor that of p can
be seen; the slant of a cluster tells whether the signs along both axes are the same.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax.events.cells import Cells
from hypertrack_jax.networks.features import arc_over_chord

NUM_SHAPE = 18
"""What the pair filter sees of the clusters of a pair."""
MOST_CHANNELS = 60.0
"""Longer paths, which graze a module, are taken for this long."""
RELATIVE = 0.1
"""What is expected of the direction of a pair: the error of a long extent grows with it."""
CHARGE = -2.88
"""Logarithm of the pitch along v in mm, which is the charge for one channel of depth."""
LARGEST = 4.0
"""Mismatches are clipped here; those of merged or broken clusters tell no more."""


class Clusters(NamedTuple):
    """The clusters of the hits, as in `Cells`."""

    extent: Float[Array | np.ndarray, "hit 2"]
    slant: Float[Array | np.ndarray, " hit"]
    charge: Float[Array | np.ndarray, " hit"]
    is_cut: Bool[Array | np.ndarray, "hit 2"]
    frame: Float[Array | np.ndarray, "hit 3 3"]


def padded_clusters(cells: Cells, num_places: int) -> Clusters:
    """The clusters with as many places as padded hits have; host side."""
    missing = num_places - len(cells.slant)
    return Clusters(
        extent=np.pad(cells.extent.astype(np.float32), ((0, missing), (0, 0))),
        slant=np.pad(cells.slant, (0, missing)),
        charge=np.pad(cells.charge, (0, missing)),
        is_cut=np.pad(cells.is_cut, ((0, missing), (0, 0))),
        frame=np.pad(cells.frame, ((0, missing), (0, 0), (0, 0))),
    )


def shape_inputs(
    coordinates: Float[Array, "hit 6"],
    clusters: Clusters,
    inner: Int[Array, " pair"],
    outer: Int[Array, " pair"],
) -> Float[Array, "pair 18"]:
    """How the clusters of two hits agree with the particle that would have made both.

    Two directions are compared with each cluster: that of the helix through the beam line and both
    hits, and the straight line through both, which is right for particles from elsewhere.

    Args:
      coordinates: `helix_coordinates` of the hits.
      clusters: of the hits.
      inner: the inner hit of each pair, see `is_outer`.
      outer: the outer one.

    Returns:
      For each end the mismatch of the extents along u and v, with the helix and with the straight
      line; the channels that the helix crosses along u and v; whether the slant agrees; and whether
      there are no cells, where all the others are 0. Turning or mirroring all hits with their
      modules changes nothing.
    """
    first, second = coordinates[inner], coordinates[outer]
    x, y, z = (second - first)[:, :3].T
    length = jnp.sqrt(x**2 + y**2 + 1.0)
    x, y = x / length, y / length
    # The chord makes the same angle with the helix at both ends, see `helix_features`: that between
    # the hits as seen from the beam line, up to a right angle.
    x1, y1, _, r1 = first[:, :4].T
    x2, y2, _, r2 = second[:, :4].T
    sine, cosine = (x1 * y2 - x2 * y1) / (r1 * r2), (x1 * x2 + y1 * y2) / (r1 * r2)
    sine = jnp.where(cosine < 0, jnp.where(sine < 0, -1.0, 1.0), jnp.clip(sine, -1.0, 1.0))
    cosine = jnp.clip(cosine, 0.0, 1.0)
    arc = length * arc_over_chord(jnp.abs(sine))
    straight = jnp.stack([x, y, z / length], axis=1)
    columns = []
    for hit, side in ((inner, -sine), (outer, sine)):
        helix = jnp.stack([cosine * x - side * y, side * x + cosine * y, z / arc], axis=1)
        columns += _end_inputs(clusters, hit, helix, straight)
    return jnp.stack(columns, axis=1)


def crossed_channels(
    frame: Float[Array, "row 3 3"], direction: Float[Array, "row 3"]
) -> tuple[Float[Array, " row"], Float[Array, " row"]]:
    """Channels along u and v that particles cross, with sign, see `Cells.frame`."""
    # In half of the time of a product of many small matrices.
    along_u, along_v, normal = ((frame[:, row] * direction).sum(axis=1) for row in range(3))
    # With the sign of the normal, but away from 0.
    least = 1e-3 * jnp.sqrt((direction**2).sum(axis=1)) + 1e-6
    normal = jnp.where(normal < 0, -1.0, 1.0) * jnp.maximum(jnp.abs(normal), least)
    limit = MOST_CHANNELS
    return jnp.clip(along_u / normal, -limit, limit), jnp.clip(along_v / normal, -limit, limit)


def shape_directions(clusters: Clusters, position: Float[Array, "hit 3"]) -> Float[Array, "hit 3"]:
    """The direction that the cluster of each hit suggests, as a unit vector.

    Of the directions that the signs leave open, the one that points best away from the origin;
    straight away where there are no cells.
    """
    away = position / jnp.maximum(jnp.sqrt((position**2).sum(axis=1, keepdims=True)), 1e-3)
    channels = clusters.extent - 1
    rows = clusters.frame[:, 0], clusters.frame[:, 1], clusters.frame[:, 2]
    # The inverse of the frame, up to a factor, has these columns.
    inverse = jnp.stack(
        [jnp.cross(rows[1], rows[2]), jnp.cross(rows[2], rows[0]), jnp.cross(rows[0], rows[1])],
        axis=2,
    )
    best, best_cosine = away, jnp.full(len(position), -2.0)
    for sign_u, sign_v in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        wanted = jnp.stack(
            [sign_u * channels[:, 0], sign_v * channels[:, 1], jnp.ones(len(position))], axis=1
        )
        direction = (inverse @ wanted[:, :, None])[:, :, 0]
        length = jnp.sqrt((direction**2).sum(axis=1, keepdims=True))
        direction = direction / jnp.maximum(length, 1e-9)
        cosine = (direction * away).sum(axis=1)
        direction = jnp.where(cosine[:, None] < 0, -direction, direction)
        is_open = sign_u * sign_v * clusters.slant >= 0
        is_better = is_open & (clusters.extent[:, 0] > 0) & (jnp.abs(cosine) > best_cosine)
        best = jnp.where(is_better[:, None], direction, best)
        best_cosine = jnp.where(is_better, jnp.abs(cosine), best_cosine)
    return best


def _end_inputs(
    clusters: Clusters,
    hit: Int[Array, " pair"],
    helix: Float[Array, "pair 3"],
    straight: Float[Array, "pair 3"],
) -> list[Float[Array, " pair"]]:
    """The inputs of one end."""
    extent, slant, _, is_cut, frame = (part[hit] for part in clusters)
    of_helix, of_line = (crossed_channels(frame, direction) for direction in (helix, straight))
    columns = []
    for crossed in (of_helix, of_line):
        for channels, measured, cut in zip(crossed, extent.T, is_cut.T, strict=True):
            channels = jnp.abs(channels)
            mismatch = (measured - 1 - channels) / (1 + RELATIVE * channels)
            # Behind the edge of a module a cluster goes on unseen.
            mismatch = jnp.where(cut, jnp.maximum(mismatch, 0.0), mismatch)
            columns.append(jnp.clip(mismatch, -LARGEST, LARGEST) / 2)
    columns += [jnp.log1p(jnp.abs(channels)) / 2 for channels in of_helix]
    columns.append(slant * jnp.tanh(of_helix[0] * of_helix[1]))
    surplus = _charge_input(clusters.charge[hit], frame, helix)
    columns.append(jnp.where(is_cut.any(axis=1), jnp.maximum(surplus, 0.0), surplus))
    has_cells = extent[:, 0] > 0
    columns = [jnp.where(has_cells, column, 0.0) for column in columns]
    return [*columns, 1.0 - has_cells.astype(jnp.float32)]


def _charge_input(
    charge: Float[Array, " pair"],
    frame: Float[Array, "pair 3 3"],
    direction: Float[Array, "pair 3"],
) -> Float[Array, " pair"]:
    """Logarithm of the charge over the length of the path that would have left it.

    The depth of a module is known in channels along v alone, which will do for pixels of one size;
    strips tell no charge, and the filter sees where they are.
    """
    along_v, normal = frame[:, 1], (frame[:, 2] * direction).sum(axis=1)
    depth = jnp.sqrt((along_v**2).sum(axis=1) + 1e-12)
    cosine = jnp.abs(normal) / jnp.sqrt((direction**2).sum(axis=1) + 1e-12)
    ratio = charge * jnp.maximum(cosine, 1e-3) / depth
    return jnp.clip(jnp.log(jnp.maximum(ratio, 1e-6)) - CHARGE, -1.5, 1.5) * 3
