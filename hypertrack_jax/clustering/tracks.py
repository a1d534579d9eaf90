"""Both sides: what reconstruction gives back."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32


class HitClusters(NamedTuple):
    """Clusters of the hits of an event."""

    label: Int32[Array | np.ndarray, " hit"]
    """Cluster of each hit, a number below the number of hits; -1 for none."""
    membership: Float32[Array | np.ndarray, " hit"]
    """Probability of each hit to belong to its cluster; 1 where the method gives none, 0 for hits
    without a cluster."""


class Tracks(NamedTuple):
    """Tracks found in one event, and the scored edges that they were found from."""

    hit_label: Int32[np.ndarray, " hit"]
    """Track of each hit: 0, 1, ... in the order of their first hits; -1 for none."""
    membership: Float32[np.ndarray, " hit"]
    """Probability of each hit to belong to its track; 0 for hits that belong to none."""
    senders: Int32[np.ndarray, " edge"]
    """Hit at the start of each candidate edge."""
    receivers: Int32[np.ndarray, " edge"]
    """Hit at its end."""
    probability: Float32[np.ndarray, " edge"]
    """GNN probability that both hits belong to one particle."""
    seconds: dict[str, float]
    """Wall time of each stage: `VD` (assignment and look-up), `GNN`, `CC` (edges above the
    threshold, and their components), `cluster`; and of all, `total`. The first event of a size
    includes the compilation. Of events reconstructed together, each has its share."""
