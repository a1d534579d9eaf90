"""Host side: what the hits of a track tell of its momentum, direction and origin, without truth."""

import numpy as np
from jaxtyping import Float, Float64, Integer

from hypertrack_jax.evaluation.metrics import NO_CLUSTER
from hypertrack_jax.events.simulation import FIELD

GEV_PER_TESLA_MM = 0.299792458e-3
"""pT over field and radius of the circle, for one unit of charge."""


def track_shapes(
    position: Float[np.ndarray, "hit 3"], cluster: Integer[np.ndarray, " hit"]
) -> dict[str, Float64[np.ndarray, " track"]]:
    """Number of hits, momentum, direction and origin of each track.

    The first, the middle and the last hit, by distance from the origin, give a circle in the
    transverse plane. This is an estimate for tables and figures, not a fit.

    Args:
      position: hit positions in mm.
      cluster: track of each hit: 0, 1, ... without gaps, or `NO_CLUSTER`.

    Returns:
      By name: the number of hits; pT in GeV, in a uniform field of 2 T along the beam (`FIELD`);
      the absolute pseudorapidity; and the impact parameter, the distance of the circle from the
      beam line, in mm. Tracks with fewer than three different positions are taken as straight, with
      infinite pT; those with one have 0 for the last two.
    """
    order = np.lexsort([np.linalg.norm(position, axis=1), cluster])
    order = order[cluster[order] != NO_CLUSTER]
    num_hits = np.bincount(cluster[order])
    start = np.cumsum(num_hits) - num_hits
    places = (start, start + num_hits // 2, start + num_hits - 1)
    first, middle, last = (position[order[place]].astype(np.float64) for place in places)
    (dx, dy, dz), (ax, ay, _), (bx, by, _) = (last - first).T, (middle - first).T, (last - middle).T
    chord = np.hypot(dx, dy)
    product = np.hypot(ax, ay) * np.hypot(bx, by) * chord
    # By Menger's formula; the sign is that of the turn.
    curvature = np.divide(2 * (ax * by - ay * bx), product, out=0 * chord, where=product > 0)
    half_angle = np.arcsin((0.5 * chord * curvature).clip(-1, 1))
    arc = np.divide(2 * half_angle, curvature, out=chord.copy(), where=curvature != 0)
    with np.errstate(divide="ignore"):
        pt = GEV_PER_TESLA_MM * FIELD / np.abs(curvature)
    # The unit vector from the first hit to the centre of a left turn.
    angle = np.arctan2(dy, dx) - half_angle
    x, y = first[:, 0], first[:, 1]
    across = np.where(chord > 0, y * np.cos(angle) - x * np.sin(angle), 0.0)
    # Distance of the centre from the beam line less the radius, in a form that holds for straight
    # tracks, too.
    power = curvature * (x**2 + y**2) + 2 * across
    root = np.sqrt(np.maximum(1 + curvature * power, 0))
    return {
        "hits": num_hits.astype(np.float64),
        "pT (GeV)": pt,
        "abs(eta)": np.abs(np.arcsinh(np.divide(dz, arc, out=0 * arc, where=arc > 0))),
        "impact parameter (mm)": np.where(chord > 0, np.abs(power) / (1 + root), 0.0),
    }
