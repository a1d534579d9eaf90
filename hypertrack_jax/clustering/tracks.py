"""Both sides: what reconstruction gives back."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Tracks(NamedTuple):
    """Tracks found in one event, and the scored edges that they were found from."""

    hit_label: Int32[np.ndarray, " hit"]
    """Track of each hit, 0, 1, ...; -1 for hits that belong to none."""
    membership: Float32[np.ndarray, " hit"]
    """Probability of each hit to belong to its track; 0 for hits that belong to none."""
    senders: Int32[np.ndarray, " edge"]
    """Hit at the start of each candidate edge."""
    receivers: Int32[np.ndarray, " edge"]
    """Hit at the end of each candidate edge."""
    probability: Float32[np.ndarray, " edge"]
    """GNN probability that both hits belong to one particle."""
    seconds: dict[str, float]
    """Wall time per stage: `VD` (assignment and look-up), `GNN`, `CC` (connected components),
    `cluster`; of events reconstructed together only their share of it, `per event`."""
