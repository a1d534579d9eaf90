"""The efficiency in bins, by a hand-made event, and its interval by the definition."""

import numpy as np
import pytest

from hypertrack_jax.evaluation.efficiency import (
    BIN_EDGES,
    bin_labels,
    binned_efficiency,
    binned_fakes,
    efficiency_table,
    joint_ratios,
    plot_ratios,
    wilson_interval,
)
from hypertrack_jax.events.event import NOISE, Event, Particles


def event_of_four():
    """Particles of 5, 4, 16 and 3 hits; hit 0 is noise. The last is not reconstructable."""
    sizes = [5, 4, 16, 3]
    hit_particle = np.array([NOISE, *np.repeat(np.arange(4), sizes)], np.int32)
    num_hits = len(hit_particle)
    # eta is asinh(pz / pT): 0, -1.2 and 4.0.
    momentum = [[0.15, 0, 0], [0.3, 0.4, 0.5 * np.sinh(-1.2)], [0, 10, 10 * np.sinh(4.0)], [1] * 3]
    return Event(
        event_id=1,
        position=np.zeros((num_hits, 3), np.float32),
        hit_id=np.arange(num_hits, dtype=np.int64),
        hit_particle=hit_particle,
        hit_weight=np.full(num_hits, 1 / num_hits),
        module=np.zeros((num_hits, 3), np.int32),
        particles=Particles(
            particle_id=np.arange(1, 5, dtype=np.int64),
            vertex=np.array([[0, 0, 99], [3, 4, 0], [300, 0, 0], [0, 0, 0]], np.float32),
            momentum=np.array(momentum, np.float32),
            charge=np.ones(4, np.int32),
            num_hits=np.array(sizes, np.int32),
        ),
        has_truth=True,
    )


def test_particles_are_counted_in_their_bins():
    """By hand: the first and the third are found, the second lost, the fourth too short."""
    event = event_of_four()
    label = np.where(np.isin(event.hit_particle, [0, 2, 3]), event.hit_particle, -1)
    expected = {
        # A bin begins at its lower edge: five hits are in the second, 16 in the last.
        "hits": ([1, 0, 7], [1, 7]),
        # 0.15, 0.5 and 10 GeV.
        "pT (GeV)": ([0, 3, 6], [0, 6]),
        "abs(eta)": ([0, 2, 6], [0, 6]),
        # 0, 5 and 300 mm.
        "vertex radius (mm)": ([0, 2, 6], [0, 6]),
    }
    found = binned_efficiency(event, label)
    assert list(found) == list(expected)
    for name, (all_bins, found_bins) in expected.items():
        num_bins = len(BIN_EDGES[name]) + 1
        np.testing.assert_array_equal(
            found[name].num_all, np.bincount(all_bins, minlength=num_bins)
        )
        np.testing.assert_array_equal(
            found[name].num_passed, np.bincount(found_bins, minlength=num_bins)
        )
    twice = joint_ratios(found, found)
    np.testing.assert_array_equal(twice["hits"].num_all, 2 * found["hits"].num_all)
    np.testing.assert_array_equal(twice["hits"].num_passed, 2 * found["hits"].num_passed)


def test_tracks_without_a_particle_are_counted_in_their_bins():
    """By hand: of three tracks the one of 5 hits mixes two particles, and one has a single hit."""
    event = event_of_four()
    label = np.full(len(event.hit_id), -1)
    label[event.hit_particle == 2] = 7
    label[np.flatnonzero(event.hit_particle == 0)[:2]] = 3
    label[np.flatnonzero(event.hit_particle == 1)[:3]] = 3
    label[np.flatnonzero(event.hit_particle == 1)[3]] = 2
    # The three of particle 1 are more than half of both.
    hits = binned_fakes(event, label)["hits"]
    np.testing.assert_array_equal(hits.num_all, [1, 1, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(hits.num_passed, [1, 0, 0, 0, 0, 0, 0, 0])
    label[np.flatnonzero(event.hit_particle == 1)[2]] = 2
    hits = binned_fakes(event, label)["hits"]
    np.testing.assert_array_equal(hits.num_all, [2, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(hits.num_passed, [2, 0, 0, 0, 0, 0, 0, 0])


def test_the_interval_ends_where_the_share_is_one_standard_deviation_off():
    """Wilson's definition: (share - p)^2 = p (1 - p) / n at both ends."""
    for num_passed, num_all in ((0, 5), (1, 1), (3, 4), (40, 80), (7, 7)):
        for p in wilson_interval(num_passed, num_all):
            off = num_passed / num_all - p
            assert off**2 == pytest.approx(p * (1 - p) / num_all, abs=1e-12)
            assert 0 <= p <= 1


def test_the_table_has_a_line_for_each_bin_with_particles():
    event = event_of_four()
    lines = efficiency_table(binned_efficiency(event, event.hit_particle)).splitlines()
    assert len(lines) == 2 + 4 * 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["hits", "< 5", "1", "1.000 (-0.500 +0.000)"]


def test_bins_say_what_they_hold():
    assert bin_labels("abs(eta)")[:2] == ["< 0.5", "0.5 - 1"]
    assert bin_labels("abs(eta)")[-1] == "from 3"
    assert all(len(bin_labels(name)) == len(BIN_EDGES[name]) + 1 for name in BIN_EDGES)


def test_the_figure_is_written(tmp_path):
    pytest.importorskip("mplhep", reason="needs the extra plots")
    event = event_of_four()
    ratios = binned_efficiency(event, event.hit_particle)
    plot_ratios(tmp_path / "efficiency.png", {"one": ratios, "other": ratios})
    assert (tmp_path / "efficiency.png").stat().st_size > 10_000
