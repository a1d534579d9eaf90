"""Batches as a function of (seed, step), and the thread that makes them ahead."""

import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from hypertrack_jax.capacities import power_above
from hypertrack_jax.events.sectors import Sector
from hypertrack_jax.events.store import step_event_ids
from hypertrack_jax.graph.event_graph import LEAST_EDGES, bucket_for, core_edges, event_graph
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.training import batches
from hypertrack_jax.training.batches import (
    fixed_events,
    graph_batch,
    prefetched,
    step_events,
)


def same(first, second) -> bool:
    equal = jax.tree.map(np.array_equal, first, second)
    return jax.tree.structure(first) == jax.tree.structure(second) and all(jax.tree.leaves(equal))


def test_a_step_has_the_same_events_whatever_came_before(source):
    forwards = [step_events(source, step, 2) for step in range(6)]
    backwards = [step_events(source, step, 2) for step in reversed(range(6))][::-1]
    assert same(forwards, backwards)
    assert not same(forwards, [step_events(source._replace(seed=4), s, 2) for s in range(6)])


def test_some_places_of_a_batch_have_the_events_of_the_whole_batch(source, voxdyn, small_tune):
    whole = step_events(source, 5, 3)
    assert same(step_events(source, 5, 3, [2, 0]), [whole[2], whole[0]])
    with prefetched(source, voxdyn, small_tune, 3, 5, [2, 0]) as batches:
        found = next(batches)
    assert same(found, graph_batch([whole[2], whole[0]], voxdyn, small_tune))


def test_an_epoch_visits_every_event_and_thins_it_anew(source):
    epochs = [
        {
            sector.event.event_id: sector.event
            for step in (2 * epoch, 2 * epoch + 1)
            for sector in step_events(source, step, 2)
        }
        for epoch in range(3)
    ]
    assert all(set(epoch) == set(source.event_ids) for epoch in epochs)
    num_particles = [
        [len(epoch[event_id].particles.particle_id) for epoch in epochs]
        for event_id in source.event_ids
    ]
    assert any(len(set(numbers)) > 1 for numbers in num_particles)


def test_one_event_twice_in_a_batch_is_thinned_twice(source):
    thinned = source._replace(event_ids=[1], rfactor_start=0.5, rfactor_end=0.6)
    twice = step_events(thinned, 0, 8)
    assert {sector.event.event_id for sector in twice} == {1}
    assert len({sector.event.position.tobytes() for sector in twice}) > 1


def test_fixed_events_are_those_of_the_list_and_stay_the_same(source):
    first, again = list(fixed_events(source)), list(fixed_events(source))
    assert [event.event_id for event in first] == list(source.event_ids)
    assert same(first, again)
    alone = next(fixed_events(source._replace(event_ids=[3])))
    assert same(alone, first[2])


def test_a_batch_is_the_graphs_of_its_events_in_one_bucket(source, voxdyn, small_tune):
    sectors = step_events(source, 0, 3)
    events = [sector.event for sector in sectors]
    batch = graph_batch(sectors, voxdyn, small_tune)
    edges = [predict_edges(voxdyn, event.position) for event in events]
    assert batch.num_hits == max(len(event.position) for event in events)
    assert batch.num_edges == max(len(candidates.senders) for candidates in edges)
    bucket = bucket_for(batch.num_hits, power_above(batch.num_edges, LEAST_EDGES))
    assert batch.graphs.globals is None
    assert batch.graphs.senders.shape[0] == 3
    for i in range(3):
        graph = jax.tree.map(lambda array: array[i], batch.graphs)  # noqa: B023
        assert same(graph, event_graph(events[i], *edges[i], node2node="hyper", bucket=bucket))


def test_rare_cell_pairs_make_no_edges_where_the_tune_says_so(source, voxdyn, small_tune):
    events = step_events(source, 0, 1)
    fewer = replace(small_tune, voxdyn=replace(small_tune.voxdyn, min_count=4))
    batch = graph_batch(events, voxdyn, fewer)
    counts = batch.graphs.edges.count[batch.graphs.edges.mask]
    assert counts.min() >= 4
    assert len(counts) < graph_batch(events, voxdyn, small_tune).num_edges


def test_prefetched_batches_are_the_direct_ones_from_the_first_step_on(source, voxdyn, small_tune):
    with prefetched(source, voxdyn, small_tune, 2, first_step=3) as batches:
        found = [next(batches) for _ in range(3)]
    expected = [graph_batch(step_events(source, step, 2), voxdyn, small_tune) for step in (3, 4, 5)]
    assert same(found, expected)


def test_the_thread_works_ahead_but_not_without_bound_and_ends(
    source, voxdyn, small_tune, monkeypatch
):
    begun = [threading.Event() for _ in range(8)]

    def counted(source, step, *which) -> list[Sector]:
        begun[step].set()
        return step_events(source, step, *which)

    monkeypatch.setattr("hypertrack_jax.training.batches.step_events", counted)
    threads = set(threading.enumerate())
    with prefetched(source, voxdyn, small_tune, 1, first_step=0) as batches:
        next(batches)
        (thread,) = set(threading.enumerate()) - threads
        # One taken, four waiting, one in hand.
        assert begun[5].wait(60)
        assert not begun[6].wait(0.2)
    assert not thread.is_alive()


def test_the_thread_ends_when_its_consumer_fails(source, voxdyn, small_tune):
    threads = set(threading.enumerate())
    with (
        pytest.raises(RuntimeError, match="the consumer's own"),
        prefetched(source, voxdyn, small_tune, 1, first_step=0),
    ):
        raise RuntimeError("the consumer's own")
    assert set(threading.enumerate()) == threads


def test_an_error_in_the_thread_is_raised_where_its_batch_is_taken(source, voxdyn, small_tune):
    incomplete = source._replace(event_ids=[1, 99])
    first_bad = next(s for s in range(8) if 99 in step_event_ids([1, 99], source.seed, s, 1))
    with (
        prefetched(incomplete, voxdyn, small_tune, 1, first_step=0) as batches,
        pytest.raises(FileNotFoundError, match=r"event000000099.npz: no such event"),
    ):
        for step in range(8):
            assert step <= first_bad
            next(batches)


def test_sectors_of_a_batch_are_drawn_anew_and_keep_their_halo(source, voxdyn, small_tune):
    source = source._replace(sector_hits=60, rfactor_start=1.0, rfactor_end=1.0)
    sectors = step_events(source, 0, 3)
    assert same(sectors, step_events(source, 0, 3))
    assert not same(sectors, step_events(source, 3, 3))
    whole = {event.event_id: event for event in fixed_events(source._replace(sector_hits=None))}
    batch = graph_batch(sectors, voxdyn, small_tune).graphs
    for i, sector in enumerate(sectors):
        event, full = sector.event, whole[sector.event.event_id]
        assert 0 < sector.is_core.sum() < len(event.position) < len(full.position)
        graph = jax.tree.map(lambda array: array[i], batch)  # noqa: B023
        np.testing.assert_array_equal(graph.nodes.is_core[: len(event.position)], sector.is_core)
        # The edges within the core are those of the whole event.
        edges = predict_edges(voxdyn, full.position)
        names = event.hit_id[sector.is_core]
        of_full = {
            (full.hit_id[s], full.hit_id[r], n)
            for s, r, n in zip(*edges[:3], strict=True)
            if full.hit_id[s] in names and full.hit_id[r] in names
        }
        is_core = core_edges(jax.device_put(graph))
        ends = (event.hit_id[np.asarray(end)[is_core]] for end in (graph.senders, graph.receivers))
        of_sector = set(zip(*ends, np.asarray(graph.edges.count)[is_core], strict=True))
        assert of_sector == of_full
        assert len(of_full) > 20


def test_fractions_are_uniform_in_their_logarithm(source, monkeypatch):
    asked = []

    def thin(event, rfactor, *_):
        asked.append(rfactor)
        return event

    monkeypatch.setattr(batches, "thin", thin)
    source = source._replace(rfactor_start=0.01, rfactor_end=1.0)
    for step in range(400):
        step_events(source, step, 1)
    share = np.log10(asked) / 2 + 1
    assert 0 <= share.min() < 0.02 and 0.98 < share.max() <= 1
    # Three standard deviations of a mean of 400.
    assert abs(share.mean() - 0.5) < 3 / np.sqrt(12 * 400)
