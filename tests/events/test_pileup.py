"""Thinning: what is kept stays as it was, and how much is kept is Poisson."""

import numpy as np
import pytest
from handmade import assert_same_event, random_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE, no_particles, validate_event
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import save_event
from hypertrack_jax.training.batches import EventSource, fixed_events


def _draws(event, rfactor, noise_ratio, number):
    """Particles and noise hits kept in so many independent draws."""
    thinned = [
        thin(event, rfactor, noise_ratio, np.random.default_rng(seed)) for seed in range(number)
    ]
    particles = [len(e.particles.particle_id) for e in thinned]
    noise = [int((e.hit_particle == NOISE).sum()) for e in thinned]
    return np.array(particles), np.array(noise)


def test_what_is_kept_is_unchanged():
    event = random_event(0, [*range(30), 0, 40], num_noise=100)
    thinned = validate_event(thin(event, 0.4, 0.2, np.random.default_rng(5)), "thinned")
    kept = np.isin(event.hit_id, thinned.hit_id)
    assert 0 < kept.sum() < len(kept)
    for name in ("position", "hit_id", "module"):
        assert (getattr(thinned, name) == getattr(event, name)[kept]).all()

    # The hits carry the same particle as before, by name and by every other column.
    row = {name: i for i, name in enumerate(event.particles.particle_id.tolist())}
    rows = [row[name] for name in thinned.particles.particle_id.tolist()]
    assert len(set(rows)) == len(rows)
    for name, field in thinned.particles._asdict().items():
        assert (field == getattr(event.particles, name)[rows]).all(), name
    is_noise = thinned.hit_particle == NOISE
    assert (is_noise == (event.hit_particle[kept] == NOISE)).all()
    assert (np.array(rows)[thinned.hit_particle] == event.hit_particle[kept])[~is_noise].all()

    # Every kept particle has all its hits, and at least one.
    assert thinned.particles.num_hits.min() > 0
    counted = np.bincount(thinned.hit_particle[~is_noise], minlength=len(rows))
    assert (counted == thinned.particles.num_hits).all()


def test_weights_keep_their_ratios_and_sum_to_one():
    event = random_event(0, [5] * 20, num_noise=10)
    thinned = thin(event, 0.3, -1, np.random.default_rng(0))
    before = event.hit_weight[np.isin(event.hit_id, thinned.hit_id)]
    np.testing.assert_allclose(thinned.hit_weight, before / before.sum(), rtol=1e-12)
    weightless = event._replace(hit_weight=np.zeros_like(event.hit_weight))
    assert (thin(weightless, 0.3, -1, np.random.default_rng(0)).hit_weight == 0).all()


def test_the_number_of_particles_is_poisson_of_the_whole_part():
    event = random_event(0, [1] * 259 + [0] * 500)
    particles, _ = _draws(event, 0.1, None, 2000)
    # Poisson(25): mean and variance within five standard errors, which excludes 25.9 and 75.
    assert abs(particles.mean() - 25) < 5 * np.sqrt(25 / 2000)
    assert abs(particles.var() - 25) < 5 * 25 * np.sqrt(2 / 2000)


def test_the_number_of_particles_is_at_least_one_and_at_most_all():
    assert set(_draws(random_event(0, [2] * 9), 0.1, None, 50)[0]) == {1}
    particles, _ = _draws(random_event(0, [2] * 9), 0.99, None, 200)
    assert particles.max() == 9 and particles.min() >= 1


def test_every_particle_is_as_likely():
    event = random_event(0, [1] * 40)
    kept = np.zeros(40)
    for seed in range(2000):
        thinned = thin(event, 0.25, None, np.random.default_rng(seed))
        kept += np.isin(event.particles.particle_id, thinned.particles.particle_id)
    expected = 2000 * 0.25
    assert np.abs(kept - expected).max() < 5 * np.sqrt(expected)


def test_the_number_of_noise_hits_is_poisson():
    # rfactor 1 keeps all 100 particle hits: the noise is Poisson(100 * 0.2 / 0.8).
    event = random_event(0, [10] * 10, num_noise=300)
    particles, noise = _draws(event, 1, 0.2, 2000)
    assert set(particles) == {10}
    assert abs(noise.mean() - 25) < 5 * np.sqrt(25 / 2000)
    assert abs(noise.var() - 25) < 5 * 25 * np.sqrt(2 / 2000)


def test_noise_follows_the_events_own_ratio():
    event = random_event(0, [10] * 100, num_noise=250)
    particles, noise = _draws(event, 0.1, -1, 1000)
    # 250 noise hits to 1000 particle hits.
    assert abs(noise.mean() / (10 * particles.mean()) - 0.25) < 0.01


def test_noise_is_at_most_what_the_event_has():
    event = random_event(0, [10] * 10, num_noise=4)
    assert set(_draws(event, 1, 0.9, 10)[1]) == {4}
    assert set(_draws(random_event(0, [10] * 10), 0.5, 0.9, 10)[1]) == {0}


@pytest.mark.parametrize("noise_ratio", [None, 0])
def test_no_noise_on_request(noise_ratio):
    event = random_event(0, [10] * 10, num_noise=50)
    thinned = thin(event, 1, noise_ratio, np.random.default_rng(0))
    assert (thinned.hit_id == event.hit_id[event.hit_particle != NOISE]).all()


def blind_event():
    """As TrackML hands its test events out."""
    event = random_event(0, [], num_noise=9)
    return event._replace(particles=no_particles(), has_truth=False)


def test_the_whole_event_on_request():
    for event in (random_event(0, [10] * 10, num_noise=50), blind_event()):
        assert thin(event, 1, -1, np.random.default_rng(0)) is event
        assert thin(event, 1.0, -1.0, np.random.default_rng(0)) is event


def test_events_without_truth_pass_through_a_source(tmp_path):
    """Their tracks are what a submission is for."""
    save_event(tmp_path, blind_event())
    (event,) = fixed_events(EventSource(tmp_path, [1000], 1, 1, -1, 0))
    assert_same_event(event, blind_event())


def test_the_same_generator_gives_the_same_event():
    event = random_event(0, [5] * 50, num_noise=50)
    first, again, other = (thin(event, 0.3, -1, np.random.default_rng(s)) for s in (1, 1, 2))
    assert_same_event(again, first)
    assert not np.array_equal(other.hit_id, first.hit_id)


@pytest.mark.parametrize("rfactor", [0, -0.1, 1.1, float("nan")])
def test_rfactor_out_of_range(rfactor):
    with pytest.raises(ValueError, match=f"rfactor is {rfactor}; expected"):
        thin(random_event(0, [5]), rfactor, None, np.random.default_rng(0))


@pytest.mark.parametrize("noise_ratio", [1, -0.5, float("nan")])
def test_noise_ratio_out_of_range(noise_ratio):
    with pytest.raises(ValueError, match=f"noise_ratio is {noise_ratio}; expected"):
        thin(random_event(0, [5]), 0.5, noise_ratio, np.random.default_rng(0))


def test_events_that_cannot_be_thinned():
    event = random_event(0, [0], num_noise=5)
    with pytest.raises(ValueError, match="event 1000 has no particle with hits"):
        thin(event, 0.5, -1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="event 1000 has no truth"):
        thin(blind_event(), 0.5, -1, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"use it as it is, with rfactor 1 and noise_ratio -1"):
        thin(blind_event(), 1, 0.1, np.random.default_rng(0))
