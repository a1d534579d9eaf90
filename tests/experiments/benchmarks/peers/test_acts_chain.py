"""The ACTS chain finds the tracks of our events, and says what it cannot take."""

import numpy as np
import pytest
from benchmarks.peers import PEERS
from benchmarks.peers.acts_chain import find_tracks, measurements
from toy import helix_event

from hypertrack_jax.evaluation.metrics import match_tracks, particle_matched, track_scores
from hypertrack_jax.events.event import NOISE

pytest.importorskip("acts", reason="pyacts is not installed")

from hypertrack_jax.events.simulation import generic_detector, simulate_event

OF_HITS = ("position", "hit_id", "hit_particle", "hit_weight", "module")


@pytest.fixture(scope="module")
def event():
    return simulate_event(3, 4, seed=1).event


@pytest.fixture(scope="module")
def found(event):
    return find_tracks(event)


def test_prompt_particles_are_found_and_tracks_are_particles(event, found):
    particles = event.particles
    pixel_hits = np.bincount(
        event.hit_particle[np.isin(event.module[:, 0], (7, 8, 9)) & (event.hit_particle != NOISE)],
        minlength=len(particles.charge),
    )
    is_easy = np.hypot(particles.vertex[:, 0], particles.vertex[:, 1]) < 1
    is_easy &= (pixel_hits >= 3) & (particles.num_hits >= 6)
    assert is_easy.sum() > 50
    assert particle_matched(match_tracks(event, found.hit_label))[is_easy].mean() > 0.95
    assert track_scores(event, found.hit_label).purity > 0.97
    assert found.cpu_seconds > 0 and found.seconds > 0


def test_tracks_do_not_depend_on_the_order_of_hits(event, found):
    order = np.random.default_rng(0).permutation(len(event.position))
    turned = event._replace(**{name: getattr(event, name)[order] for name in OF_HITS})
    again = track_scores(turned, find_tracks(turned).hit_label)
    scores = track_scores(event, found.hit_label)
    assert abs(again.num_matched - scores.num_matched) <= 1


def test_soft_particles_need_a_low_seed_pt(event, found):
    pt = np.hypot(*event.particles.momentum[:, :2].T)
    is_soft = (pt < 0.3) & (event.particles.num_hits >= 4)
    low = particle_matched(match_tracks(event, found.hit_label))[is_soft].sum()
    hard = find_tracks(event, seed_pt=0.5)
    high = particle_matched(match_tracks(event, hard.hit_label))[is_soft].sum()
    assert high < low / 2


def test_a_report_can_ask_for_it_by_name(event, found):
    name, find = PEERS["acts"]
    label, seconds = find(event)
    assert (label == found.hit_label).all() and seconds > 0
    assert name == "ACTS, seed pT > 0.15 GeV"


def test_measurements_lead_back_to_the_hits(event):
    modules = generic_detector().modules
    measured = measurements(event, modules)
    index = np.searchsorted(modules.geometry_id, measured.geometry_id >> 8)
    back = np.einsum("ha,hax->hx", measured.local, modules.axes[index]) + modules.center[index]
    np.testing.assert_allclose(back, event.position, atol=1e-3)
    assert (measured.sigma > 0).all()


def test_a_single_hit_makes_no_track(event):
    one = event._replace(**{name: getattr(event, name)[:1] for name in OF_HITS})
    assert find_tracks(one).hit_label.tolist() == [-1]


@pytest.mark.parametrize("is_known", [True, False])
def test_hits_off_their_modules_are_refused(event, is_known):
    if is_known:
        wrong = helix_event(1, 3)
    else:
        wrong = event._replace(module=event.module + np.array([30, 0, 0], np.int32))
    with pytest.raises(ValueError, match=r"is not on module \[.*compare with ACTS on events"):
        find_tracks(wrong)


def test_a_second_pass_adds_tracks_of_displaced_particles(event, found):
    both = find_tracks(event, is_displaced=True)
    is_first = found.hit_label >= 0
    np.testing.assert_array_equal(both.hit_label[is_first], found.hit_label[is_first])
    is_second = ~is_first & (both.hit_label >= 0)
    assert both.hit_label[is_second].min() > found.hit_label.max()
    matched = [
        particle_matched(match_tracks(event, label.hit_label)).sum() for label in (found, both)
    ]
    assert matched[1] > matched[0] + 5
    assert both.seconds > found.seconds / 2
