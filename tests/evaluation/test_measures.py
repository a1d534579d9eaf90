"""Measures of others, on events whose values are computed by hand."""

import numpy as np
import pytest
from handmade import random_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.measures import (
    MEASURES,
    TRACKML,
    Measured,
    measure_tracks,
    measures_table,
)
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.events.event import NOISE

OURS, THREE_HITS, PIXELS, ATLAS = (measure.name for measure in MEASURES)
SIZES = [6, 4, 3, 4, 0]


@pytest.fixture
def event():
    """Particles of 6, 4, 3, 4 and 0 hits, one after the other, then two hits of noise.

    In the pixels are the first four hits of particle 0, three of particle 1 and all of the others.
    Particle 0 has a pT below 0.9 GeV; particle 3 flies along the beam.
    """
    event = random_event(0, SIZES, num_noise=2)
    hit_particle = np.repeat([0, 1, 2, 3, NOISE], [*SIZES[:4], 2]).astype(np.int32)
    module = np.full((19, 3), 8)
    module[[4, 5, 9]] = 13
    momentum = np.array([[0.5, 0.5, 0], [1, 0, 1], [0, 2, 1], [1, 0, 50], [3, 0, 0]], np.float32)
    return event._replace(
        hit_particle=hit_particle,
        module=module,
        hit_weight=np.where(hit_particle == NOISE, 0, 1 / 17),
        particles=event.particles._replace(momentum=momentum),
    )


# Track 0: five hits of particle 0. Track 1: two of particle 1 and two of noise. Track 2: the other
# two of particle 1. Track 3: particle 2. Track 4: two of particle 3, and the last of 0. Track 5:
# the other two of particle 3.
LABEL = np.array([0, 0, 0, 0, 0, 4, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 1, 1])


def test_values_by_hand(event):
    found = measure_tracks(event, LABEL)
    # Found: particle 0 by track 0. Of the tracks 0 and 1 have four hits.
    assert found[OURS] == pytest.approx((1 / 3, 1 / 5, 1 / 2, 0))
    # Tracks 0, 1, 3, 4 have three hits; track 4 has exactly half of particle 3.
    assert found[THREE_HITS] == pytest.approx((2 / 4, 2 / 5, 2 / 4, 0))
    # Tracks 0, 1, 3, 4 match particles 0, 1, 2, 3.
    assert found[ATLAS] == pytest.approx((1, 4 / 5, 0, 0))
    # Particles 1 and 2 count, and 4 as generated. In the pixels track 1 has two of particle 1's
    # three hits and two of noise, which is no majority, and track 4 is two hits.
    assert found[PIXELS] == pytest.approx((1 / 2, 1 / 3, 1 / 3, 0))
    assert found[TRACKML] == track_scores(event, LABEL).trackml


def test_ours_is_the_score_that_is_printed_elsewhere(event):
    scores = track_scores(event, LABEL)
    measured = measure_tracks(event, LABEL)[OURS]
    assert measured.efficiency == scores.efficiency


def test_tracks_of_one_particle_are_duplicates(event):
    label = np.full(19, -1)
    label[:3], label[3:6] = 0, 1
    label[[10, 6, 7]] = 2
    found = measure_tracks(event, label)
    # Two tracks of particle 0, and one of particle 1: of three tracks one is a duplicate.
    assert found[ATLAS] == pytest.approx((2 / 4, 2 / 5, 0, 1 / 3))
    # Half of particle 0 is no majority, and neither is half of particle 1.
    assert found[THREE_HITS] == pytest.approx((0, 0, 1, 0))


def test_a_track_that_two_particles_share_counts_once(event):
    label = np.full(19, -1)
    label[[0, 1, 6, 7]] = 0
    found = measure_tracks(event, label)
    assert found[ATLAS] == pytest.approx((1 / 4, 1 / 5, 0, 0))


def test_particles_that_should_not_be_found_count_in_no_efficiency(event):
    # Particle 0 is below the pT of the pixels' measure; three hits are no particle of ours.
    found = measure_tracks(event, np.where(event.hit_particle == 0, 0, -1))
    assert found[PIXELS] == pytest.approx((0, 0, 0, 0))
    label = np.full(19, -1)
    label[[10, 11, 12, 17]] = 0
    found = measure_tracks(event, label)
    assert found[OURS] == pytest.approx((0, 0, 1, 0))
    assert found[THREE_HITS] == pytest.approx((1 / 4, 1 / 5, 0, 0))


def test_perfect_tracks_and_none(event):
    found = measure_tracks(event, event.hit_particle)
    for name in (OURS, THREE_HITS, ATLAS, PIXELS):
        assert found[name].efficiency == 1
        assert (found[name].fake_rate, found[name].duplicate_rate) == (0, 0)
    nothing = measure_tracks(event, np.full(19, -1))
    assert nothing[ATLAS] == Measured(0, 0, None, None)
    no_particles = event._replace(hit_particle=np.full(19, NOISE, np.int32))
    assert measure_tracks(no_particles, LABEL)[OURS] == Measured(None, 0, 1, 0)


def test_the_table_has_a_line_and_a_source_for_each(event):
    lines = measures_table([measure_tracks(event, LABEL)] * 2).split("\n")
    assert len(lines) == 2 + len(MEASURES) + 1
    for line, measure in zip(lines[2:], MEASURES, strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (cells[0], cells[-1]) == (measure.name, measure.source)
    assert "| 0.333 ± 0.000 | 0.200 ± 0.000 | 0.500 ± 0.000 | 0.000 ± 0.000 |" in lines[2]
    assert [cell.strip() for cell in lines[-1].split("|")][3:6] == ["-", "-", "-"]


def test_an_event_without_truth_is_refused(event):
    with pytest.raises(UserError, match="has no truth"):
        measure_tracks(event._replace(has_truth=False), LABEL)
