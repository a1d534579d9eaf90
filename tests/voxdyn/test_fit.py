"""The fit on a stream of toy events: what is counted, and that stopping it changes nothing."""

import numpy as np
import pytest
from dense import to_dense
from test_storage import assert_same
from toy import helix_event

from hypertrack_jax import memory
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.topology import TOPOLOGIES, truth_edges
from hypertrack_jax.voxdyn import fit
from hypertrack_jax.voxdyn.counting import PairCounter
from hypertrack_jax.voxdyn.fit import (
    Training,
    copy_of,
    fit_voxdyn,
    fit_voxdyns,
    unfinished_place,
)
from hypertrack_jax.voxdyn.voronoi import assign_cells

EVENTS = {k: helix_event(seed=7, num_particles=25, event_id=k) for k in range(1, 7)}


ALL = tuple(EVENTS.values())


def training(event_ids=EVENTS, load_event=EVENTS.__getitem__, num_iterations=2, **settings):
    return Training(list(event_ids), load_event, num_iterations, **settings)


def fit_one(events=ALL, ncell=64, node2node="hyper", **settings):
    return fit_voxdyn(iter(events), ncell, node2node, num_iterations=2, **settings)


@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_counts_all_pairs_of_all_events(node2node):
    vd = fit_one(node2node=node2node)
    dense = np.zeros((64, 64), np.int64)
    for event in EVENTS.values():
        cell = np.asarray(assign_cells(vd.index, event.position))
        senders, receivers = truth_edges(event, node2node)
        np.add.at(dense, (cell[senders], cell[receivers]), 1)
    np.testing.assert_array_equal(to_dense(vd.rows), dense)
    np.testing.assert_array_equal(vd.histogram[1:], np.bincount(dense[np.triu_indices(64)])[1:])
    assert (vd.node2node, vd.num_events, vd.num_cells, vd.min_count) == (node2node, 6, 64, 1)


def test_space_is_that_of_the_training_hits():
    hits = np.vstack([e.position[e.hit_particle >= 0] for e in EVENTS.values()])
    np.testing.assert_array_equal(fit_one().space, [hits.min(axis=0), hits.max(axis=0)])


def test_order_of_events_does_not_matter():
    assert_same(fit_one(max_centroid_hits=300), fit_one(ALL[::-1], max_centroid_hits=300))


def test_several_cells_and_topologies_in_one_pass_are_those_of_separate_fits(tmp_path):
    loaded = []

    def load_event(event_id):
        loaded.append(event_id)
        return EVENTS[event_id]

    many = fit_voxdyns(
        training(load_event=load_event), [32, 64], ["eom", "hyper"], tmp_path / "partial"
    )
    for vd, (ncell, node2node) in zip(
        many, [(32, "eom"), (32, "hyper"), (64, "eom"), (64, "hyper")], strict=True
    ):
        assert_same(vd, fit_one(ncell=ncell, node2node=node2node))
    assert sorted(loaded) == sorted(2 * list(EVENTS))


@pytest.mark.parametrize("num_copies", [2, 4, 6])
def test_copies_are_counted_as_the_events_turned_and_mirrored(tmp_path, num_copies):
    (vd,) = fit_voxdyns(training(num_copies=num_copies), [64], ["eom"], tmp_path)
    dense = np.zeros((64, 64), np.int64)
    for event in EVENTS.values():
        senders, receivers = truth_edges(event, "eom")
        x, y, z = event.position.T
        copies = [(x, y, z), (-x, -y, z), (x, y, -z), (-x, -y, -z)]
        copies += [copy_of(event.position, number).T for number in (4, 5)]
        for copy in copies[:num_copies]:
            cell = np.asarray(assign_cells(vd.index, np.stack(copy, axis=1)))
            np.add.at(dense, (cell[senders], cell[receivers]), 1)
    np.testing.assert_array_equal(to_dense(vd.rows), dense)
    assert vd.num_events == len(EVENTS)


def test_copies_beyond_the_fourth_are_turned_about_the_beam():
    """As complex numbers: a second way to turn x and y."""
    position = EVENTS[1].position
    plane = position[:, 0] + 1j * position[:, 1]
    angles = []
    for number in range(64):
        copy = copy_of(position, number)
        assert copy.dtype == np.float32
        turned = (copy[:, 0] + 1j * copy[:, 1]) / plane
        np.testing.assert_allclose(np.abs(turned), 1, rtol=1e-5)
        np.testing.assert_allclose(turned, turned[0], atol=1e-5)
        np.testing.assert_array_equal(copy[:, 2], position[:, 2] * (-1 if number % 4 > 1 else 1))
        angles.append(np.angle(turned[0]) % (2 * np.pi))
    assert angles[6] == pytest.approx(np.pi * 0.6180339887, abs=1e-5)
    # 16 azimuths and their opposites, none near another.
    directions = np.sort([angle for k, angle in enumerate(angles) if k % 4 < 2])
    assert np.diff(directions).min() > 2 * np.pi / 32 / 3


@pytest.mark.parametrize("num_copies", [0, 65])
def test_impossible_number_of_copies(tmp_path, num_copies):
    with pytest.raises(ValueError, match=f"num_copies={num_copies}: expected a number from 1 to"):
        next(fit_voxdyns(training(num_copies=num_copies), [64], ["eom"], tmp_path))


class Stop(Exception):
    """What ends a fit from outside."""


@pytest.mark.parametrize("stop_after", [0, 3, 6, 8, 11])
def test_a_fit_that_was_stopped_goes_on_and_gives_the_same(tmp_path, stop_after):
    """Six events are read for the centroids and six for C; the fit stops at any of them."""
    directory, read = tmp_path / "partial", 0

    def stopping(event_ids, what):
        nonlocal read
        for event_id in event_ids:
            if read == stop_after:
                raise Stop
            read += 1
            yield event_id

    with pytest.raises(Stop):
        list(fit_voxdyns(training(), [64], ["hyper"], directory, stopping))
    counted = []

    def watching(event_ids, what):
        if what == "counting pairs":
            counted.extend(event_ids)
        return event_ids

    (vd,) = fit_voxdyns(training(), [64], ["hyper"], directory, watching)
    assert_same(vd, fit_one())
    if stop_after > 9:
        assert len(counted) < 6, "nothing of what had been counted was kept"
    assert list(directory.glob("*")) == []


def stop_while_counting(directory, ncells=(64,), node2nodes=("hyper",), **settings):
    """Leaves a fit unfinished, with four of its six events counted."""

    def stopping(event_ids, what):
        for number, event_id in enumerate(event_ids):
            if what == "counting pairs" and number == 4:
                raise Stop
            yield event_id

    with pytest.raises(Stop):
        list(fit_voxdyns(training(**settings), ncells, node2nodes, directory, stopping))


def no_more(event_id):
    raise AssertionError(f"event {event_id} was read again")


def test_finished_counts_are_not_counted_again(tmp_path):
    """A fit ends when the caller has taken all estimators, and has saved them."""
    fits = fit_voxdyns(training(), [64], ["hyper"], tmp_path)
    first = next(fits)
    fits.close()
    (again,) = fit_voxdyns(training(load_event=no_more), [64], ["hyper"], tmp_path)
    assert_same(first, again)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"num_iterations": 3},
        {"max_centroid_hits": 99},
        {"event_ids": [1, 2, 3, 4, 5]},
        {"num_copies": 2},
        {"ncells": (32,)},
        {"ncells": (64, 32)},
        {"node2nodes": ("eom",)},
        {"node2nodes": ("hyper", "eom")},
    ],
    ids=str,
)
def test_each_choice_has_a_place_of_its_own(tmp_path, change):
    what = {"ncells": (64,), "node2nodes": ("hyper",)} | change
    ncells, node2nodes = what.pop("ncells"), what.pop("node2nodes")
    place = unfinished_place(tmp_path, training(), [64], ["hyper"])
    assert unfinished_place(tmp_path, training(**what), ncells, node2nodes) != place
    # Neither the order of the events nor where they are read from decides the result.
    same = training(event_ids=reversed(EVENTS), load_event=no_more)
    assert unfinished_place(tmp_path, same, [64], ["hyper"]) == place


def test_an_unfinished_fit_goes_on_after_another_has_ended(tmp_path):
    stop_while_counting(tmp_path)
    (place,) = tmp_path.iterdir()
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert len(before) == 3, "centroids, manifest and counts"
    (smaller,) = fit_voxdyns(training(), [32], ["eom"], tmp_path)
    assert list(tmp_path.iterdir()) == [place]
    assert {path: path.read_bytes() for path in before} == before
    assert_same(smaller, fit_one(ncell=32, node2node="eom"))
    counted = []

    def watching(event_ids, what):
        assert what == "counting pairs", "the centroids are fitted already"
        counted.extend(event_ids)
        return event_ids

    (vd,) = fit_voxdyns(training(), [64], ["hyper"], tmp_path, watching)
    assert_same(vd, fit_one())
    assert len(counted) < 6


def test_the_same_fit_twice_at_once_is_refused(tmp_path):
    fits = fit_voxdyns(training(), [64], ["hyper"], tmp_path)
    first = next(fits)
    with pytest.raises(UserError, match=r"lock: another process is at this fit; wait"):
        next(fit_voxdyns(training(), [64], ["hyper"], tmp_path))
    assert len(list(fit_voxdyns(training(), [32], ["hyper"], tmp_path))) == 1
    assert list(fits) == []
    (again,) = fit_voxdyns(training(), [64], ["hyper"], tmp_path)
    assert_same(first, again)


def test_a_damaged_unfinished_fit_is_told(tmp_path):
    stop_while_counting(tmp_path)
    (place,) = tmp_path.iterdir()
    path = place / "centroids_64.npz"
    for damaged in (path.read_bytes()[:-9], b"", b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"centroids_64\.npz: damaged or not a file of centroids .* fit anew\."
        ):
            next(fit_voxdyns(training(), [64], ["hyper"], tmp_path))


def test_counts_of_other_centroids_are_not_taken_up(tmp_path):
    """The file of centroids is gone, and others come in its place."""
    stop_while_counting(tmp_path)
    (place,) = tmp_path.iterdir()
    path = place / "centroids_64.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"centroids": arrays["centroids"] + 1})
    with pytest.raises(UserError, match=r"hyper_64 holds an unfinished count with centroids=\d+"):
        next(fit_voxdyns(training(), [64], ["hyper"], tmp_path))


def test_events_of_one_number_are_refused():
    with pytest.raises(UserError, match=r"two events have the number 1; give each one of its own"):
        fit_voxdyn([EVENTS[1], EVENTS[1]], 64, "hyper")


def test_a_count_with_an_event_that_is_not_asked_for_is_not_taken_up(tmp_path):
    counter = PairCounter(tmp_path, {})
    counter.add(9, np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="unfinished count with event 9, which is not among"):
        fit.count_events(training(), [], {(0, "hyper"): counter})


def test_an_error_in_an_event_comes_through_and_keeps_what_was_counted(tmp_path):
    reads = dict.fromkeys(EVENTS, 0)

    def load_event(event_id):
        reads[event_id] += 1
        if event_id == 6 and reads[event_id] == 2:
            raise ValueError("event 6 is damaged")
        return EVENTS[event_id]

    with pytest.raises(ValueError, match="event 6 is damaged"):
        list(fit_voxdyns(training(load_event=load_event), [64], ["hyper"], tmp_path))
    assert len(list(tmp_path.glob("voxdyn.unfinished.*/hyper_64/manifest.json"))) == 1
    (vd,) = fit_voxdyns(training(), [64], ["hyper"], tmp_path)
    assert_same(vd, fit_one())


def test_sample_is_bounded_and_of_particle_hits_only():
    events = list(EVENTS.values())
    particle_hits = np.vstack([e.position[e.hit_particle >= 0] for e in events])
    everything = fit.sample_particle_hits(events, 10**6, seed=0)
    np.testing.assert_array_equal(np.unique(everything, axis=0), np.unique(particle_hits, axis=0))
    for size in (100, 250):
        few = fit.sample_particle_hits(events, size, seed=0)
        np.testing.assert_array_equal(few, everything[:size])
    assert not np.array_equal(few, fit.sample_particle_hits(events, 250, seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ncell": 10**6}, r"ncell=1000000 is more than the \d+ particle hits"),
        ({"ncell": 0}, r"ncell=0: expected a number of cells from 1 to 1048576"),
        ({"ncell": 2**20 + 1}, r"ncell=1048577: expected"),
        ({"node2node": "hypre"}, r"node2node=hypre is unknown"),
        ({"events": []}, r"ncell=64 is more than the 0 particle hits"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        fit_one(**settings)


def test_more_cells_than_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**5)
    with pytest.raises(ValueError, match=r"ncell=64 needs about 0\.0 GB"):
        fit_one()
