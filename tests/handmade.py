"""Events of random points, for tests of files and bookkeeping that need no helices."""

from collections.abc import Sequence

import numpy as np

from hypertrack_jax.events.cells import Cells
from hypertrack_jax.events.event import NOISE, Event, Particles


def random_event(
    seed: int, particle_sizes: Sequence[int], num_noise: int = 0, event_id: int = 1000
) -> Event:
    """A valid event whose particles have the given numbers of hits, in random order.

    Hit ids have gaps, and particle ids differ only in bits that a float64 would lose.
    """
    rng = np.random.default_rng(seed)
    num_particles = len(particle_sizes)
    hit_particle = np.repeat([*range(num_particles), NOISE], [*particle_sizes, num_noise])
    rng.shuffle(hit_particle)
    num_hits = len(hit_particle)
    weight = rng.uniform(0.5, 1.5, num_hits) * (hit_particle != NOISE)
    return Event(
        event_id=event_id,
        position=rng.normal(0, 300, (num_hits, 3)).astype(np.float32),
        hit_id=np.cumsum(rng.integers(1, 4, num_hits)),
        hit_particle=hit_particle.astype(np.int32),
        hit_weight=weight / (weight.sum() or 1),
        module=rng.integers(1, 20, (num_hits, 3)),
        particles=Particles(
            particle_id=2**59 + 1 + rng.permutation(num_particles),
            vertex=rng.normal(0, 10, (num_particles, 3)).astype(np.float32),
            momentum=rng.normal(0, 1, (num_particles, 3)).astype(np.float32),
            charge=rng.choice(np.array([-1, 1], np.int32), num_particles),
            num_hits=np.array(particle_sizes, np.int32),
        ),
        has_truth=True,
    )


def with_cells(event: Event, seed: int = 0) -> Event:
    """The event with a random cluster for each hit; every fifth hit has none."""
    rng, num_hits = np.random.default_rng(seed), len(event.position)
    is_empty = np.arange(num_hits) % 5 == 4
    extent = rng.integers(1, 9, (num_hits, 2)) * ~is_empty[:, None]
    return event._replace(
        cells=Cells(
            extent=extent.astype(np.int32),
            num_cells=extent.sum(axis=1).astype(np.int32),
            charge=rng.uniform(0, 1, num_hits).astype(np.float32) * ~is_empty,
            slant=rng.uniform(-1, 1, num_hits).astype(np.float32) * ~is_empty,
            is_cut=(rng.random((num_hits, 2)) < 0.2) & ~is_empty[:, None],
            frame=rng.normal(0, 1, (num_hits, 3, 3)).astype(np.float32),
        )
    )


def assert_same_event(got: Event, expected: Event) -> None:
    """Fails unless both events have the same values and types, bit for bit."""
    for name in Event._fields:
        if name not in ("particles", "cells"):
            _assert_identical(name, getattr(got, name), getattr(expected, name))
    assert (got.cells is None) == (expected.cells is None)
    if got.cells is not None and expected.cells is not None:
        for name in Cells._fields:
            _assert_identical(name, getattr(got.cells, name), getattr(expected.cells, name))
    for name in Particles._fields:
        _assert_identical(name, getattr(got.particles, name), getattr(expected.particles, name))


def _assert_identical(name, got, expected):
    assert type(got) is type(expected), name
    if isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
        assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(expected).tobytes(), name
    else:
        assert got == expected, name
