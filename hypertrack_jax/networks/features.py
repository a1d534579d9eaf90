"""Device side: what the networks see of hit positions and of pairs of hits."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LENGTH_SCALE = 1000.0
"""mm; brings r and z of TrackML's detector to order 1, see `scaled`."""
CLIP = 5.0
"""Pair features are clipped here: two hits at one radius have no finite slope."""
ARCSINE = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1, 1.0)
"""Coefficients of asin(t) / t in t^2 up to t = 1/2, the highest first."""
NUM_CYLINDRICAL = 5
NUM_HELIX = 8
NUM_ODD_HELIX = 5
"""How many of them, the first ones, change sign when the hits are exchanged."""
NUM_EDGE = {"none": 0, "helix": NUM_HELIX + 1, "helix+filter": NUM_HELIX + 1}
"""Features of an edge, by the tune's `edge_features`."""


def scaled(
    position: Float[Array, "hit 3"], length_scale: float | Float[Array, ""]
) -> Float[Array, "hit 3"]:
    """Positions as if the detector had the size of TrackML's, for which all lengths here are made.

    Args:
      position: in mm.
      length_scale: as in `NetworkTune`; with 1000 nothing changes.
    """
    return position * jnp.asarray(LENGTH_SCALE / length_scale, position.dtype)


def cylindrical_features(position: Float[Array, "hit 3"]) -> Float[Array, "hit 5"]:
    """x/r, y/r, r, z and asinh(z/r) = eta, with r and z in metres."""
    x, y, z = position[:, 0], position[:, 1], position[:, 2]
    r = jnp.maximum(jnp.hypot(x, y), 1e-3)
    return jnp.stack([x / r, y / r, r / LENGTH_SCALE, z / LENGTH_SCALE, jnp.arcsinh(z / r)], axis=1)


def helix_features(
    first: Float[Array, "edge 3"], second: Float[Array, "edge 3"]
) -> Float[Array, "edge 8"]:
    """Pair features of hits `first` and `second`, in mm, scaled to order 1 and clipped to +-5.

    The hypothesis of a circle through the beam line and both hits gives the curvature
    kappa = 2 sin(delta phi) / d, d being the transverse distance of the hits. The arc length from
    the beam line to a hit at radius r is s = 2 asin(kappa r / 2) / kappa; the helix is a straight
    line in (s, z), with slope cot theta and intercept z0. The straight-line z0 in (r, z) stands
    beside it, because for pairs on one layer neither is well defined and they fail differently.

    Returns:
      delta phi, delta r, delta z, delta eta and curvature, which change sign when the hits are
      exchanged; slope, intercept and straight-line intercept, which do not.
    """
    return features_of_coordinates(helix_coordinates(first), helix_coordinates(second))


def features_of_coordinates(
    first: Float[Array, "edge 6"], second: Float[Array, "edge 6"]
) -> Float[Array, "edge 8"]:
    """The same from `helix_coordinates`, so that angles are computed per hit and not per edge."""
    x1, y1, z1, r1, phi1, eta1 = first.T
    x2, y2, z2, r2, phi2, eta2 = second.T
    turn = phi2 - phi1
    delta_phi = turn - 2 * jnp.pi * jnp.round(turn / (2 * jnp.pi))
    delta_r, delta_z, delta_eta = r2 - r1, z2 - z1, eta2 - eta1
    squared = (x2 - x1) ** 2 + (y2 - y1) ** 2
    # Products in place of sin(delta phi), which takes as long as all the rest.
    sine = (x1 * y2 - x2 * y1) / (r1 * r2)
    kappa = 2 * sine / jnp.sqrt(squared + 1.0)
    arc1, arc2 = (r * arc_over_chord(jnp.abs(kappa) * r / 2) for r in (r1, r2))
    slope, intercept = _line(arc1, arc2, z1, z2)
    _, straight_intercept = _line(r1, r2, z1, z2)
    # A track of 0.3 GeV in 2 T has a curvature of 2 per metre.
    curvature = kappa * LENGTH_SCALE / 2
    odd = [delta_phi, delta_r / LENGTH_SCALE, delta_z / LENGTH_SCALE, delta_eta, curvature]
    even = [jnp.arcsinh(slope), intercept / 200.0, straight_intercept / 200.0]
    return jnp.stack([jnp.clip(value, -CLIP, CLIP) for value in odd + even], axis=1)


def helix_coordinates(position: Float[Array, "hit 3"]) -> Float[Array, "hit 6"]:
    """x, y, z, r, phi and eta."""
    x, y, z = position.T
    r = jnp.maximum(jnp.hypot(x, y), 1e-3)
    return jnp.stack([x, y, z, r, jnp.arctan2(y, x), jnp.arcsinh(z / r)], axis=1)


def without_direction(features: Float[Array, "edge feature"]) -> Float[Array, "edge feature"]:
    """`helix_features`, and any even ones behind them, with the odd ones by absolute value.

    They are invariant under exchange of the hits.
    """
    odd, even = features[:, :NUM_ODD_HELIX], features[:, NUM_ODD_HELIX:]
    return jnp.concatenate([jnp.abs(odd), even], axis=1)


def count_feature(count: Int[Array, " edge"]) -> Float[Array, "edge 1"]:
    """Logarithm of an edge's entry of the C-matrix, brought to order 1.

    How often particles made such a pair in training tells before any geometry whether the edge is
    likely true. It grows with the number of events that C was counted on, so a network belongs to
    the C-matrix that it was trained with.
    """
    return (jnp.log(jnp.maximum(count, 1).astype(jnp.float32)) / 3 - 1)[:, None]


def score_feature(logit: Float[Array, " edge"]) -> Float[Array, "edge 1"]:
    """The filter's logit, brought to order 1."""
    return jnp.clip(logit / 4, -3, 3)[:, None]


def arc_over_chord(half_chord: Float[Array, "*row"]) -> Float[Array, "*row"]:
    """asin(t) / t, the length of an arc over that of its chord, for t up to 1, to 4e-7 of it.

    t is half the chord over the radius; it counts as 1 above. XLA's own arcsin takes ten times as
    long on a CPU. Polynomial of asinf in S. L. Moshier's Cephes library.
    """
    t = jnp.clip(half_chord, 0.0, 1.0)
    is_long = t > 0.5
    squared = jnp.where(is_long, (1 - t) / 2, t * t)
    series = jnp.full_like(t, ARCSINE[0])
    for coefficient in ARCSINE[1:]:
        series = series * squared + coefficient
    # asin(t) = pi / 2 - 2 asin(sqrt((1 - t) / 2)). Not the root of 0, which has no gradient.
    root = jnp.sqrt(jnp.maximum(squared, 1e-14))
    long = (jnp.pi / 2 - 2 * root * series) / jnp.maximum(t, 0.5)
    return jnp.where(is_long, long, series)


def _line(u1, u2, z1, z2):
    """Slope and intercept of the line through (u1, z1) and (u2, z2), finite for u1 = u2.

    Written so that exchanging the points changes neither, also where the slope is out of bounds.
    """
    run, rise = u2 - u1, z2 - z1
    is_apart = jnp.abs(run) >= 1e-2
    slope = jnp.where(is_apart, rise, jnp.abs(rise)) / jnp.where(is_apart, run, 1e-2)
    return slope, 0.5 * (z1 + z2 - (u1 + u2) * slope)
