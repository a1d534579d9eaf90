"""The benchmark of whole reconstructions: counts, means and scores that are known."""

import logging
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from benchmarks import end_to_end
from benchmarks.end_to_end import (
    EndToEnd,
    Run,
    measure_reconstruction,
    reconstruction_cost,
    time_events,
)
from benchmarks.stages import fresh_model
from benchmarks.timing import forget_peak, peak_memory
from toy import helix_event

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.events.store import save_event
from hypertrack_jax.tunes.tune import ClusterTune, NetworkTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn


@pytest.fixture
def setting(tmp_path):
    return EndToEnd(
        data=tmp_path,
        models=tmp_path,
        read_tag="small",
        min_count=None,
        event_ids=[3, 4],
        rfactors=[0.5, 1.0],
        noise_ratio=-1,
        seed=0,
        runs=2,
        with_acts=True,
        with_cost=False,
    )


def stub_timing(setting, rfactor, suite, *more):
    events = end_to_end._events(setting, rfactor)
    return time_events(events, lambda e: Run(e.hit_particle, 1.0, 2.0), setting.runs, 4, suite)


def test_scores_and_times_are_of_the_counted_runs():
    events = [helix_event(1, 6, event_id=1), helix_event(1, 10, event_id=2)]
    times = iter([9.0, 8.0, 1.0, 2.0, 9.0, 8.0, 3.0, 5.0])

    def run(event):
        # The second event's tracks are not found.
        label = event.hit_particle if event.event_id == 1 else np.full_like(event.hit_particle, -1)
        return Run(label, next(times), 0.5)

    timing = time_events(events, run, 2, 4, "work / ours")
    assert (timing.min, timing.median, timing.max, timing.runs) == (1.0, 2.5, 5.0, 4)
    assert timing.cpu == 0.5
    assert timing.hits == round((len(events[0].position) + len(events[1].position)) / 2)
    assert timing.efficiency == 0.5 and timing.dms == 0.5
    # An event without tracks has no purity, which is no reason for a 0.
    assert timing.purity == 1.0


def test_memory_is_of_the_runs_and_not_of_what_came_before(monkeypatch):
    """In a process that holds 1 GB, and whose high-water mark is known."""
    mark, sizes = 9.0, iter([5.0, 0.5, 0.25, 0.75])  # the first run compiles

    def forget_peak():
        nonlocal mark
        mark = 1.0
        return mark

    def run(event):
        nonlocal mark
        mark = max(mark, 1.0 + next(sizes))
        return Run(event.hit_particle, 1.0, 1.0)

    monkeypatch.setattr(end_to_end, "forget_peak", forget_peak)
    monkeypatch.setattr(end_to_end, "peak_memory", lambda: mark)
    timing = time_events([helix_event(1, 6)], run, 2, 4, "work / ours")
    assert (timing.idle_memory, timing.peak_memory) == (1.0, 1.75)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone forgets")
def test_a_peak_is_forgotten():
    large = np.ones(2 * 10**8, np.int8)
    peak = peak_memory()
    del large
    assert forget_peak() < peak - 0.15


def test_all_programs_at_all_sizes_on_the_same_events(setting, monkeypatch):
    for event_id in setting.event_ids:
        save_event(setting.data, helix_event(2, 20, event_id=event_id))
    for name in ("_time_ours", "_time_acts"):
        monkeypatch.setattr(end_to_end, name, stub_timing)
    monkeypatch.setattr(end_to_end, "alone", lambda function, *more: function(*more))
    timings = list(measure_reconstruction(setting))
    assert [one.suite for one in timings] == [
        f"reconstruct, pile-up {pileup} / {who}"
        for pileup in (100, 200)
        for who in ("ours", "ACTS, seed pT > 0.15 GeV", "ACTS, seed pT > 0.4 GeV")
    ]
    assert timings[0].hits == timings[1].hits < timings[3].hits
    assert all(one.efficiency == 1.0 for one in timings)


@pytest.mark.parametrize("error", [BrokenProcessPool("ended"), UserError("no memory for it")])
def test_what_does_not_fit_is_left_out_and_told(setting, monkeypatch, caplog, error):
    def alone(function, setting, rfactor, suite, *more):
        if rfactor == 1.0:
            raise error
        return suite

    monkeypatch.setattr(end_to_end, "alone", alone)
    with caplog.at_level(logging.WARNING):
        assert len(list(measure_reconstruction(setting._replace(with_acts=False)))) == 1
    assert "pile-up 200 / ours" in caplog.text and "memory" in caplog.text


def test_a_missing_package_is_told(setting, monkeypatch):
    def alone(*_):
        raise MissingPackageError("pyacts is missing")

    monkeypatch.setattr(end_to_end, "alone", alone)
    with pytest.raises(MissingPackageError):
        list(measure_reconstruction(setting))


def test_acts_is_timed_on_simulated_events(setting):
    pytest.importorskip("acts", reason="pyacts is not installed")
    from hypertrack_jax.events.simulation import simulate_event

    save_event(setting.data, simulate_event(3, 2, seed=1).event)
    setting = setting._replace(event_ids=[3])
    timing = end_to_end._time_acts(setting, 1.0, "work / ACTS", 0.15)
    assert timing.purity > 0.9 and timing.efficiency > 0.6
    assert 0 < timing.cpu and 0 < timing.min


@pytest.fixture(scope="module")
def model():
    network = NetworkTune("cartesian", "none", 1, 8, 5, (4,), num_attention_blocks=1)
    cut = ClusterTune(cluster="cut")
    tune = Tune("small", voxdyn=VoxdynTune(ncell=64), network=network, cluster=cut)
    events = [helix_event(1, 20, event_id=number) for number in range(3)]
    return fresh_model(fit_voxdyn(events, 64, "hyper", num_iterations=2), tune)


def test_a_larger_min_count_leaves_fewer_edges(setting, model, monkeypatch):
    monkeypatch.setattr(end_to_end.Reconstructor, "load", lambda *_: model)
    for event_id in setting.event_ids:
        save_event(setting.data, helix_event(2, 20, event_id=event_id))
    all_edges, fewer = (
        end_to_end._time_ours(setting._replace(min_count=count), 1.0, "work / ours").edges
        for count in (None, 3)
    )
    assert 0 < fewer < all_edges


def test_cost_of_the_whole_program(model):
    event = helix_event(1, 20, event_id=0)
    cost = reconstruction_cost(model, event)
    num_edges = model.capacities(len(event.position)).graph.num_edges
    assert cost.products > 2 * num_edges * 8 * 8
    assert cost.temporary_bytes > 4 * num_edges
