"""The toy is what its users take it for: helices of the right curvature."""

import numpy as np
import toy

from hypertrack_jax.events.event import NOISE, validate_event


def test_hits_lie_on_the_circle_of_the_particle():
    event = validate_event(toy.helix_event(3), "toy")
    for index, (vertex, momentum, charge) in enumerate(
        zip(*event.particles[1:4], strict=True),
    ):
        px, py, _ = momentum
        radius = np.hypot(px, py) / (0.3e-3 * 2)
        # The force q v x B of a field along +z points to (py, -px) for a positive charge.
        center = vertex[:2] + charge * radius * np.array([py, -px]) / np.hypot(px, py)
        distance = np.linalg.norm(event.position[event.hit_particle == index, :2] - center, axis=1)
        np.testing.assert_allclose(distance, radius, rtol=1e-3, atol=0.2)


def test_counts_and_seed():
    event = toy.helix_event(0, num_particles=50, noise_ratio=0.2)
    assert event.particles.num_hits.min() >= 4
    counted = np.bincount(event.hit_particle[event.hit_particle != NOISE])
    np.testing.assert_array_equal(counted, event.particles.num_hits)
    np.testing.assert_allclose((event.hit_particle == NOISE).mean(), 0.2, atol=0.002)
    np.testing.assert_allclose(event.hit_weight.sum(), 1)
    np.testing.assert_array_equal(toy.helix_event(5).position, toy.helix_event(5).position)
    assert len(toy.helix_event(5).position) != len(toy.helix_event(6).position)
