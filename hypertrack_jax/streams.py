"""Host side: independent random streams, one for each use."""

import hashlib
import operator

import numpy as np


def stream(purpose: str, seed: int, *ids: int) -> np.random.Generator:
    """The random numbers of one use.

    Another purpose, seed or id gives numbers that are independent of these. Only the
    simulation has a generator of its own: the shipped weights were trained on its events.

    Args:
      purpose: what the numbers are for, such as "thin an event".
      seed: the user's seed, any whole number.
      *ids: what tells the uses of one purpose apart, such as the number of the event.
    """
    # NumPy's own mixing of several numbers takes 1 and [1, 0] for the same, and no negative ones.
    name = repr((purpose, *map(operator.index, (seed, *ids))))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()))
