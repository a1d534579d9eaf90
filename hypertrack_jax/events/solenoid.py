"""Host side: the field that the real TrackML event was made in, about that of ATLAS's solenoid.

In the disks at |z| = 2.2 m the event's particles turn as if the field were 0.7 T, against 2.0 T at
the centre, see experiments/results/simulation.md. The coil here was fitted to that.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import ellipe, ellipk

HALF_LENGTH, RADIUS = 2656.0, 1479.0
"""Of the coil, in mm."""
CENTRE = 2.01
"""Field at the centre, in Tesla."""
NUM_LOOPS = 200
"""Loops of current that the coil is made of."""


def solenoid_field(
    r: Float[np.ndarray, "*place"], z: Float[np.ndarray, "*place"]
) -> tuple[Float[np.ndarray, "*place"], Float[np.ndarray, "*place"]]:
    """Components of the field along r and z, in Tesla.

    Args:
      r: distances from the beam line in mm, well inside the coil.
      z: positions along the beam line in mm, 0 at the centre of the coil.
    """
    # On the beam line the radial component is 0 over 0.
    r = np.maximum(r, 1e-3).astype(np.float64)
    along_r, along_z = np.zeros(r.shape), np.zeros(r.shape)
    at_centre = 0.0
    for loop in HALF_LENGTH * ((2 * np.arange(NUM_LOOPS) + 1) / NUM_LOOPS - 1):
        of_loop = _loop_field(r, z - loop)
        along_r += of_loop[0]
        along_z += of_loop[1]
        at_centre += np.pi / 2 * RADIUS**2 / np.hypot(RADIUS, loop) ** 3
    return along_r * CENTRE / at_centre, along_z * CENTRE / at_centre


def _loop_field(r, z):
    """The same for one loop at z = 0, in 1/mm, with a current for which mu_0 I is pi."""
    squared = RADIUS**2 + r**2 + z**2
    near, far = squared - 2 * RADIUS * r, squared + 2 * RADIUS * r
    first, second = ellipk(1 - near / far), ellipe(1 - near / far)
    along_r = z / r * (squared * second / near - first)
    along_z = (2 * RADIUS**2 - squared) * second / near + first
    return along_r / 2 / np.sqrt(far), along_z / 2 / np.sqrt(far)
