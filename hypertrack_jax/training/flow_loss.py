"""Both sides: what the experimental normalising flow learns from (algorithm section 6)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from hypertrack_jax.events.event import Event
from hypertrack_jax.networks.flow import NUM_CONDITIONS, flow_log_density

VERTEX_SCALE = 10.0
"""mm; below it a coordinate of a vertex counts as it is, above it by its logarithm."""
MOMENTUM_SCALE = 1.0
"""GeV; the same for momenta."""


def hit_conditions(event: Event, num_nodes: int) -> Float32[np.ndarray, "hit 7"]:
    """Vertex, momentum and charge of the particle of every hit, brought to order 1.

    Args:
      event: the event with truth.
      num_nodes: node capacity of its graph.

    Returns:
      What the flow's density depends on; 0 for noise and padding.
    """
    particles = event.particles
    of_particle = np.concatenate(
        [
            np.arcsinh(particles.vertex / VERTEX_SCALE),
            np.arcsinh(particles.momentum / MOMENTUM_SCALE),
            particles.charge[:, None],
        ],
        axis=1,
        dtype=np.float32,
    )
    conditions = np.zeros((num_nodes, NUM_CONDITIONS), np.float32)
    is_signal = event.hit_particle >= 0
    conditions[np.flatnonzero(is_signal)] = of_particle[event.hit_particle[is_signal]]
    return conditions


def flow_loss(
    params: Any,
    embedding: Float[Array, "hit feat"],
    condition: Float[Array, "hit 7"],
    hit_particle: Int[Array, " hit"],
) -> Float[Array, ""]:
    """Mean negative log-density of z over the hits of particles, given their particle's parameters.

    Its gradient reaches the edge predictor and draws z of similar particles together. The density
    is bounded, because a block scales a channel by e^4 at most.

    Args:
      params: of the flow.
      embedding: z of every hit.
      condition: as `hit_conditions` makes it.
      hit_particle: particle index; -1 for noise and padding.

    Returns:
      The loss; 0 for an event without particles.
    """
    is_signal = hit_particle >= 0
    # Padding has no meaning and must not reach a gradient.
    z = jnp.where(is_signal[:, None], embedding.astype(condition.dtype), 0)
    log_density = jnp.where(is_signal, flow_log_density(params, z, condition), 0)
    return -log_density.sum() / jnp.maximum(is_signal.sum(), 1).astype(z.dtype)
