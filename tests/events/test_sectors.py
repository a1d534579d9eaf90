"""Azimuth sectors: what they hold, and how often they hold each hit."""

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE, validate_event
from hypertrack_jax.events.sectors import draw_sector, require_sectors, whole
from hypertrack_jax.events.store import save_event

EVENT = helix_event(3, num_particles=60)
NUM_HITS = len(EVENT.position)


def test_every_hit_is_in_a_core_as_often():
    rng = np.random.default_rng(0)
    number, counts = 2000, dict.fromkeys(EVENT.hit_id.tolist(), 0)
    for _ in range(number):
        sector = draw_sector(EVENT, NUM_HITS // 4, rng, halo=0.2)
        for hit in sector.event.hit_id[sector.is_core].tolist():
            counts[hit] += 1
    share = np.array(list(counts.values())) / number
    expected = 1 / 4 - 0.4 / (2 * np.pi)
    spread = np.sqrt(expected * (1 - expected) / number)
    assert abs(share.mean() - expected) < 3 * spread
    assert (np.abs(share - expected) < 5 * spread).all()


def test_a_sector_is_a_range_of_azimuth_that_wraps_around():
    rng = np.random.default_rng(1)
    wrapped = 0
    for _ in range(30):
        sector = draw_sector(EVENT, NUM_HITS // 3, rng, halo=0.3)
        azimuth = np.arctan2(*sector.event.position[:, 1::-1].T)
        inside = np.isin(EVENT.hit_id, sector.event.hit_id)
        other = np.arctan2(*EVENT.position[~inside, 1::-1].T)
        # Turned so that it begins at zero, it is one piece.
        begin = min(azimuth, key=lambda a: ((azimuth - a) % (2 * np.pi)).max())
        span = ((azimuth - begin) % (2 * np.pi)).max()
        assert span < 2 * np.pi / 3
        assert ((other - begin) % (2 * np.pi) > span).all()
        core = (azimuth[sector.is_core] - begin) % (2 * np.pi)
        assert core.max() - core.min() <= 2 * np.pi / 3 - 0.6 + 1e-6
        # Both sides of the core have their halo.
        all_azimuths = np.arctan2(*EVENT.position[:, 1::-1].T)
        apart = np.abs(all_azimuths[:, None] - azimuth[sector.is_core])
        is_near = np.minimum(apart, 2 * np.pi - apart).min(axis=1) < 0.29
        assert inside[is_near].all()
        wrapped += azimuth.max() > 3 and azimuth.min() < -3
    assert wrapped > 3


def test_particles_are_recounted_and_the_others_leave_the_list():
    event = draw_sector(EVENT, NUM_HITS // 5, np.random.default_rng(2), halo=0.1).event
    validate_event(event, "a sector")
    whole_of = dict(zip(EVENT.hit_id.tolist(), EVENT.hit_particle.tolist(), strict=True))
    for hit, particle in zip(event.hit_id.tolist(), event.hit_particle.tolist(), strict=True):
        if particle == NOISE:
            assert whole_of[hit] == NOISE
        else:
            name = EVENT.particles.particle_id[whole_of[hit]]
            assert event.particles.particle_id[particle] == name
    hits_of = np.bincount(event.hit_particle[event.hit_particle != NOISE])
    np.testing.assert_array_equal(event.particles.num_hits, hits_of)
    assert 0 < len(hits_of) < 60


@pytest.mark.parametrize("num_hits", [NUM_HITS, 10 * NUM_HITS])
def test_a_sector_of_the_whole_circle_is_the_event(num_hits):
    sector = draw_sector(EVENT, num_hits, np.random.default_rng(0))
    assert sector.event is EVENT
    assert sector.is_core.all()
    assert whole(EVENT).event is EVENT


def test_a_sector_no_larger_than_its_halo_is_refused():
    with pytest.raises(UserError, match=r"no more than its halo of 0\.400 rad; take at least"):
        draw_sector(EVENT, NUM_HITS // 20, np.random.default_rng(0), halo=0.2)


def test_events_too_large_for_their_sectors_are_found_before_a_training(tmp_path):
    for event_id in (1, 2):
        save_event(tmp_path, EVENT._replace(event_id=event_id))
    require_sectors(tmp_path, [1, 2], NUM_HITS // 10)
    require_sectors(tmp_path, [1, 2], 10 * NUM_HITS)
    with pytest.raises(UserError, match="hits of event 1 spans"):
        require_sectors(tmp_path, [1, 2], NUM_HITS // 10, halo=0.4)
    with pytest.raises(FileNotFoundError, match="no such event"):
        require_sectors(tmp_path, [1, 3], NUM_HITS)
