"""Other programs for the same work. The benchmarks run them beside ours if they are installed."""

import numpy as np

from benchmarks.peers import acts_chain
from hypertrack_jax.events.event import Event


def _acts(event: Event) -> tuple[np.ndarray, float]:
    found = acts_chain.find_tracks(event)
    return found.hit_label, found.seconds


PEERS = {"acts": ("ACTS, seed pT > 0.15 GeV", _acts)}
"""By flag value: name in a report, and a function from an event to tracks of hits and seconds."""
