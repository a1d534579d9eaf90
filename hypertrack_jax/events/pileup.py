"""Host side: fewer collisions in an event, by removing particles and noise hits.

A full TrackML event has 200 collisions on average; `rfactor` 0.01, 0.1, 0.3 and 1 stand for a
pile-up of 2, 20, 60 and 200.
"""

import numpy as np
from jaxtyping import Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE, Event, Particles, with_hits

OWN_NOISE_RATIO = -1
"""The value of `noise_ratio` that stands for the event's own ratio."""


def thin(
    event: Event,
    rfactor: float | int,
    noise_ratio: float | int | None,
    rng: np.random.Generator,
) -> Event:
    """Keeps a random part of the particles, and noise hits in proportion.

    Of the n particles with hits Poisson(int(rfactor n)) are kept, at least one and at most all;
    rfactor 1 keeps all. Then Poisson(m r / (1 - r)) of the noise hits are kept, at most all, where
    m is the number of particle hits kept and r the noise ratio. All other particles, also those
    without hits, are dropped from the list. Weights are scaled to sum to 1.

    Args:
      event: an event with truth; or any, for rfactor 1 with noise_ratio -1.
      rfactor: expected fraction of particles to keep, in (0, 1].
      noise_ratio: noise hits / all hits, in [0, 1); -1 for the event's own; None for no noise.
      rng: source of randomness.

    Returns:
      The thinned event, its hits in their former order; the same event for rfactor 1 with
      noise_ratio -1.

    Raises:
      UserError: the event has no truth or no particle with hits, or a number is out of range.
    """
    if not 0 < rfactor <= 1:
        raise UserError(f"rfactor is {rfactor}; expected a number above 0 and at most 1.")
    if not (noise_ratio is None or noise_ratio == OWN_NOISE_RATIO or 0 <= noise_ratio < 1):
        raise UserError(
            f"noise_ratio is {noise_ratio}; expected a number from 0 to below 1, "
            "-1 for the event's own ratio, or none for no noise."
        )
    if rfactor == 1 and noise_ratio == OWN_NOISE_RATIO:
        return event
    if not event.has_truth:
        raise UserError(
            f"event {event.event_id} has no truth, so that its particles cannot be drawn; "
            f"use it as it is, with rfactor 1 and noise_ratio {OWN_NOISE_RATIO}."
        )
    is_noise = event.hit_particle == NOISE
    if is_noise.all():
        raise UserError(
            f"event {event.event_id} has no particle with hits; leave it out of the event range."
        )
    particles = _draw_particles(event.particles, rfactor, rng)
    num_hits = int(event.particles.num_hits[particles].sum())
    ratio = is_noise.mean() if noise_ratio == OWN_NOISE_RATIO else noise_ratio or 0.0
    noise_hits = np.flatnonzero(is_noise)
    num_noise = min(rng.poisson(num_hits * ratio / (1 - ratio)), len(noise_hits))
    is_kept = np.isin(event.hit_particle, particles)
    is_kept[rng.choice(noise_hits, num_noise, replace=False)] = True
    thinned = with_hits(event, is_kept)
    # The weights that are left may all be 0.
    return thinned._replace(hit_weight=thinned.hit_weight / (thinned.hit_weight.sum() or 1.0))


def _draw_particles(
    particles: Particles, rfactor: float | int, rng: np.random.Generator
) -> Int64[np.ndarray, " kept"]:
    """Indices of the particles to keep, ascending."""
    candidates = np.flatnonzero(particles.num_hits > 0)
    if rfactor == 1:
        return candidates
    num_kept = np.clip(rng.poisson(int(rfactor * len(candidates))), 1, len(candidates))
    return np.sort(rng.choice(candidates, num_kept, replace=False))
