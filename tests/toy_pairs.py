"""Pairs of the hits of a toy event."""

import jax.numpy as jnp
import numpy as np
from toy import helix_event

from hypertrack_jax.graph.pair_graph import HitPairs
from hypertrack_jax.networks.features import helix_coordinates

EVENT = helix_event(4, num_particles=8)
NUM_HITS = len(EVENT.position)


def coordinates_of(position):
    return helix_coordinates(jnp.asarray(position, jnp.float32))


def toy_pairs() -> HitPairs:
    """All pairs of a particle and as many others."""
    rng = np.random.default_rng(0)
    particle = EVENT.hit_particle
    joined = (particle[:, None] == particle) & (particle >= 0) | (
        rng.random((NUM_HITS, NUM_HITS)) < 0.1
    )
    one, other = np.nonzero(np.tril(joined, -1))
    logit = rng.normal(size=len(one)).astype(np.float32)
    count = rng.integers(1, 50, len(one))
    ends = (jnp.asarray(column, jnp.int32) for column in (one, other, count))
    return HitPairs(*ends, jnp.asarray(logit), jnp.int32(len(one)))
