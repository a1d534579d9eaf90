"""The capacities that an event is tried in first, and those that are refused."""

from dataclasses import replace

import pytest

from hypertrack_jax import memory
from hypertrack_jax.capacities import capacity_for
from hypertrack_jax.errors import UserError
from hypertrack_jax.reconstruction import capacities
from hypertrack_jax.reconstruction.capacities import (
    GraphCapacities,
    KeptCapacities,
    require_room,
    step_above,
)
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import ClusterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.lookup import TOO_MANY


def test_the_first_capacities_follow_from_the_number_of_hits(model):
    first = [model.capacities(number) for number in (1, 100, 1000, 10_000, 100_000)]
    assert first == sorted(first)
    assert first[2].num_hits > 1000
    # Small events share their programs.
    assert first[0] == first[1]
    # Denser rows of C, more edges.
    sparse = replace(model, tune=replace(model.tune, voxdyn=VoxdynTune(ncell=64, min_count=9)))
    assert sparse.capacities(10_000).graph.num_edges < first[3].graph.num_edges


def test_events_of_about_one_size_share_all_programs():
    shipped, numbers = Reconstructor.load("cells"), range(8192, 16384, 16)
    steps = {shipped.capacities(number) for number in numbers}
    assert 1 < len(steps) <= 8
    assert all(number <= step_above(number) <= 1.125 * number for number in numbers)
    assert shipped.capacities(step_above(9000)) == shipped.capacities(9000)
    assert step_above(0) == step_above(7) < capacities.LEAST_HITS


def test_searches_begin_with_capacities_that_their_hits_decide(voxdyn):
    for num_hits, hops, largest, expected in (
        (128, 1, None, (32, 64)),
        (4095, 1, None, (32, 64)),
        (4096, 1, None, (64, 64)),
        (10**6, 1, None, (128, 128)),
        (65535, 2, None, (16, 128)),
        (10**6, 8, None, (32, 128)),
        (10**6, 8, 48, (32, 48)),
        (4095, 1, 500, (32, 64)),
    ):
        cluster = ClusterTune(micrograph_hops=hops, largest_micrograph=largest)
        tune = Tune("x", cluster=cluster)
        first = capacities.first_capacities(num_hits, voxdyn, 1, tune)
        assert (first.kept.num_neighbors, first.search.num_slots) == expected
        assert first.search.num_seeds == first.num_hits // 16
    by_cut = capacities.first_capacities(
        128, voxdyn, 1, Tune("x", cluster=ClusterTune(cluster="cut"))
    )
    assert by_cut.kept.num_neighbors == 0


# Of simulated events, by their hits, as `filtered_edges` tells it, in the order of its capacities.
NEEDED = {
    "cells": {
        1301: (1772, 9, 1737, 8, 1636),
        12318: (34811, 24, 27459, 19, 21664),
        37267: (184700, 51, 116651, 32, 80233),
        98541: (766518, 76, 418289, 45, 262211),
    },
    "positions": {
        1301: (2610, 14, 2569, 14, 2242),
        12318: (101700, 60, 83778, 49, 43129),
        44030: (846116, 121, 506766, 81, 281271),
        148548: (5084942, 238, 2743727, 155, 1417723),
    },
}


@pytest.mark.parametrize("name", NEEDED)
def test_the_filter_of_a_shipped_model_has_room_for_simulated_events_and_not_much_more(name):
    shipped = Reconstructor.load(name)
    for num_hits, needed in NEEDED[name].items():
        first = shipped.capacities(num_hits).edge_filter
        for number, capacity in zip(needed, first, strict=True):
            assert number <= capacity, (num_hits, first)
            # The smallest share the programs of larger ones.
            assert num_hits < 2048 or capacity <= 3 * number, (num_hits, first)


def test_the_lists_have_room_for_simulated_events_and_not_much_more():
    shipped = Reconstructor.load("cells")
    # Blocks and places, as `raw_pairs` tells them.
    for num_hits, needed in {
        1514: (4086, 4198),
        2937: (8041, 10842),
        11631: (29686, 100354),
        44631: (88888, 957452),
        148548: (165638, 5509316),
    }.items():
        first = shipped.capacities(num_hits).graph
        for number, capacity in zip(needed, first, strict=True):
            assert number <= capacity, (num_hits, first)
            assert num_hits < 2048 or capacity <= 2 * number, (num_hits, first)


def test_a_graph_that_32_bits_do_not_reach_is_refused():
    with pytest.raises(UserError, match="more edges than 32-bit indices reach; choose"):
        require_room(GraphCapacities(1, capacity_for(TOO_MANY)), 5)


def test_micrographs_too_large_for_the_memory_are_refused(model, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    search = model.capacities(1000).search
    require_room(search, 1000)
    with pytest.raises(UserError, match=r"of 1000 hits with num_slots=8192.* needs about"):
        require_room(search._replace(num_slots=8192), 1000)


def test_hits_with_too_many_neighbors_are_refused():
    require_room(KeptCapacities(1024), 5)
    with pytest.raises(UserError, match=r"a hit has more than 1024 neighbours .* at one place"):
        require_room(KeptCapacities(1536), 5)
