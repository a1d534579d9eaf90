"""Host side: the magnetic field that bends the particles, by position along the beam.

The circle through three hits of a particle of known transverse momentum gives the field that would
bend it so, if the field were uniform and along the beam.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from hypertrack_jax.evaluation.track_shapes import GEV_PER_TESLA_MM
from hypertrack_jax.events.event import Event

HEADER = ["abs(z) (mm)", "simulated", "real"]
EDGES = (0, 200, 400, 700, 1000, 1300, 1600, 2000, 2500)
"""Edges of the bins in abs(z), in mm."""
PT = (0.2, 1.5)
"""Range of pT in GeV: particles above bend too little, those below lose too much energy."""
MOST_RADIUS, LEAST_STEP, LEAST_CHORD = 1.0, 20.0, 80.0
"""In mm: largest radius of the vertex; hits nearer than this count as one; shortest chord."""


def field_table(simulated: Sequence[Event], real: Sequence[Event]) -> list[list[str]]:
    """Rows of `HEADER`: median and its standard error in Tesla, where both have circles."""
    both = [_field_by_z(events) for events in (simulated, real)]
    rows = []
    for low, high in itertools.pairwise(EDGES):
        chosen = [field[(z >= low) & (z < high)] for z, field in both]
        if min(map(len, chosen)) > 1:
            rows.append([f"{low} to {high}", *map(_told, chosen)])
    return rows


def _told(field: Float[np.ndarray, " circle"]) -> str:
    error = 1.25 * field.clip(0, 4).std(ddof=1) / np.sqrt(len(field))
    return f"{np.median(field):.3f} ± {error:.3f}"


def _field_by_z(
    events: Sequence[Event],
) -> tuple[Float[np.ndarray, " circle"], Float[np.ndarray, " circle"]]:
    """abs(z) in mm and field in Tesla of each circle."""
    circles = [circle for event in events for circle in _circles(event)]
    z, field = np.array(circles).reshape(-1, 2).T
    return z, field


def _circles(event: Event) -> Iterator[tuple[float, float]]:
    particles = event.particles
    pt = np.hypot(particles.momentum[:, 0], particles.momentum[:, 1])
    is_used = (PT[0] < pt) & (pt < PT[1])
    is_used &= np.hypot(particles.vertex[:, 0], particles.vertex[:, 1]) < MOST_RADIUS
    for particle in np.flatnonzero(is_used):
        hits = event.position[event.hit_particle == particle].astype(np.float64)
        distance = np.linalg.norm(hits - particles.vertex[particle], axis=1)
        hits = _apart(hits[np.argsort(distance)])
        for first, middle, last, z in zip(hits, hits[2:], hits[4:], hits[:, 2], strict=False):
            a, b, c = ((q - p)[:2] for p, q in ((first, middle), (middle, last), (first, last)))
            product = np.prod([np.hypot(*chord) for chord in (a, b, c)])
            if np.hypot(*c) > LEAST_CHORD and product > 0:
                # Menger's curvature; positive charges turn from y to x.
                curvature = -2 * (a[0] * b[1] - a[1] * b[0]) / product
                momentum = pt[particle] / particles.charge[particle]
                yield abs((z + middle[2] + last[2]) / 3), curvature * momentum / GEV_PER_TESLA_MM


def _apart(hits: Float[np.ndarray, "hit 3"]) -> Float[np.ndarray, "left 3"]:
    """The hits, without those next to the one before: these are on overlapping modules."""
    left = list(hits[:1])
    for hit in hits[1:]:
        if np.linalg.norm(hit - left[-1]) > LEAST_STEP:
            left.append(hit)
    return np.array(left).reshape(-1, 3)
