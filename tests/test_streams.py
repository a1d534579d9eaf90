"""Random streams: two uses never share one."""

from itertools import combinations
from pathlib import Path

import numpy as np
from toy import helix_event

from hypertrack_jax.streams import stream
from hypertrack_jax.training import batches

EVENT = helix_event(0, num_particles=1)
NAMES = [("a", 0), ("a", 1), ("a", -1), ("b", 0), ("a", 0, 0), ("a", 1, 0), ("a", 0, 1)]
# NumPy splits large numbers into words of 32 bits, and a list of words is another list of numbers.
NAMES += [("a", 2**80), ("a", 2**32 + 5), ("a", 5, 1), ("a 1", 2), ("a", 12), ("a", 1, 2)]


def test_equal_names_give_equal_numbers_and_others_do_not():
    drawn = {name: stream(*name).random(2) for name in NAMES}
    for name in NAMES:
        np.testing.assert_array_equal(stream(*name).random(2), drawn[name])
    assert len({tuple(numbers) for numbers in drawn.values()}) == len(NAMES)


def test_no_two_uses_of_one_seed_and_event_are_correlated():
    """The first number of each use, over events; the simulation's own stream is one of them."""
    purposes = ("thin", "thin for training", "thin for a benchmark", "sample hits for centroids")
    events = range(2000)
    drawn = [[np.random.default_rng([0, event]).random() for event in events]]
    drawn += [[stream(purpose, 0, event).random() for event in events] for purpose in purposes]
    drawn += [[stream("thin", 1, event).random() for event in events]]
    for one, other in combinations(drawn, 2):
        # Five standard deviations of the coefficient of independent numbers.
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(events))


def test_collisions_and_drawn_fractions_of_particles_are_independent(monkeypatch):
    """Both are drawn first, from equal seeds and event numbers."""
    event_ids, fractions = range(1000, 3000), []

    def watching_thin(event, rfactor, noise_ratio, rng):
        fractions.append(rfactor)
        return event

    monkeypatch.setattr(batches, "load_event", lambda *_: EVENT)
    monkeypatch.setattr(batches, "thin", watching_thin)
    source = batches.EventSource(Path("data"), event_ids, 0.01, 1, -1, 0)
    list(batches.fixed_events(source))
    collisions = [np.random.default_rng([0, event_id]).poisson(200) for event_id in event_ids]
    assert abs(np.corrcoef(collisions, fractions)[0, 1]) < 5 / np.sqrt(len(event_ids))
