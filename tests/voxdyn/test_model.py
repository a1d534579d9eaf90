"""The estimator: fitted on toy events, compared with dense matrices, saved and loaded."""

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.events.topology import TOPOLOGIES, truth_edges
from hypertrack_jax.voxdyn import model
from hypertrack_jax.voxdyn.voronoi import assign_cells

EVENTS = [helix_event(seed=7, num_particles=25, event_id=event_id) for event_id in range(1, 7)]


def fit(events=EVENTS, ncell=64, node2node="hyper", **settings):
    return model.fit_voxdyn(lambda: iter(events), ncell, node2node, num_iterations=2, **settings)


@pytest.fixture(scope="module")
def vd():
    return fit()


def to_dense(vd):
    dense = np.zeros((vd.num_cells, vd.num_cells), np.int64)
    row = np.repeat(np.arange(vd.num_cells), np.diff(vd.row_offsets))
    dense[row, vd.columns] = vd.counts
    return dense


def assert_same(first, second):
    for name in model.VoxelDynamics._fields:
        if name != "index":
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("node2node", TOPOLOGIES)
def test_counts_all_pairs_of_all_events(node2node):
    vd = fit(node2node=node2node)
    dense = np.zeros((64, 64), np.int64)
    for event in EVENTS:
        cell = np.asarray(assign_cells(vd.index, event.position))
        senders, receivers = truth_edges(event, node2node)
        np.add.at(dense, (cell[senders], cell[receivers]), 1)
    np.testing.assert_array_equal(to_dense(vd), dense)
    assert (vd.node2node, vd.num_events, vd.num_cells) == (node2node, 6, 64)


@pytest.mark.parametrize("min_count", [1, 2])
@pytest.mark.parametrize("max_entries", [model.MAX_ENTRIES, 200])
def test_edges_join_hits_of_connected_cells(vd, min_count, max_entries, monkeypatch):
    monkeypatch.setattr(model, "MAX_ENTRIES", max_entries)
    position = helix_event(seed=8, num_particles=40).position
    cell = np.asarray(assign_cells(vd.index, position))
    counts = to_dense(vd)[cell[:, None], cell[None, :]]
    receivers, senders = np.nonzero(counts >= min_count)
    edges = model.predict_edges(vd, position, min_count)
    np.testing.assert_array_equal(edges.receivers, receivers)
    np.testing.assert_array_equal(edges.senders, senders)
    np.testing.assert_array_equal(edges.counts, counts[receivers, senders])


def test_true_edges_of_training_events_are_all_found(vd):
    for event in EVENTS:
        edges = model.predict_edges(vd, event.position)
        senders, receivers = truth_edges(event, "hyper")
        found = set(zip(edges.senders.tolist(), edges.receivers.tolist(), strict=True))
        assert found.issuperset(zip(senders.tolist(), receivers.tolist(), strict=True))


def test_no_hit_and_one_hit(vd):
    assert model.predict_edges(vd, np.zeros((0, 3), np.float32)).senders.shape == (0,)
    event = EVENTS[0]
    particle_hit = event.position[event.hit_particle >= 0][:1]
    edges = model.predict_edges(vd, particle_hit)
    assert (edges.senders.tolist(), edges.receivers.tolist()) == ([0], [0])


def test_hits_outside_training_space_belong_to_the_outermost_cells(vd):
    position = np.array([[1e5, 2e5, -3e5], [-1e7, 0, 1]], np.float32)
    offset = position[:, None].astype(np.float64) - np.asarray(vd.centroids)[None]
    cell = (offset**2).sum(axis=-1).argmin(axis=1)
    edges = model.predict_edges(vd, position)
    receivers, senders = np.nonzero(to_dense(vd)[cell[:, None], cell[None, :]])
    np.testing.assert_array_equal(edges.receivers, receivers)
    np.testing.assert_array_equal(edges.senders, senders)


def test_order_of_events_does_not_matter():
    assert_same(fit(max_centroid_hits=300), fit(EVENTS[::-1], max_centroid_hits=300))


def test_several_ncell_in_one_pass_are_those_of_separate_fits():
    many = model.fit_voxdyns(lambda: iter(EVENTS), [32, 64], "eom", num_iterations=2)
    for vd, ncell in zip(many, [32, 64], strict=True):
        assert_same(vd, fit(ncell=ncell, node2node="eom"))


def test_events_are_read_twice_and_one_at_a_time():
    passes = []

    def events():
        passes.append(0)
        for event in EVENTS:
            passes[-1] += 1
            yield event

    model.fit_voxdyn(events, 16, "hyper", num_iterations=0)
    assert passes == [len(EVENTS)] * 2


def test_sample_is_bounded_and_of_particle_hits_only():
    particle_hits = np.vstack([e.position[e.hit_particle >= 0] for e in EVENTS])
    everything = model.sample_particle_hits(EVENTS, 10**6, seed=0)
    np.testing.assert_array_equal(np.unique(everything, axis=0), np.unique(particle_hits, axis=0))
    few = model.sample_particle_hits(EVENTS, 100, seed=0)
    np.testing.assert_array_equal(few, everything[:100])
    assert not np.array_equal(few, model.sample_particle_hits(EVENTS, 100, seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ncell": 10**6}, r"--ncell=1000000 is more than the \d+ particle hits"),
        ({"ncell": 0}, r"--ncell=0: expected a number of cells from 1 to 1048576"),
        ({"ncell": 2**20 + 1}, r"--ncell=1048577: expected"),
        ({"node2node": "hypre"}, r"--node2node=hypre is unknown"),
        ({"events": []}, r"--ncell=64 is more than the 0 particle hits"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        fit(**settings)


def test_load_gives_back_what_was_saved(vd, tmp_path):
    path = model.voxdyn_path(tmp_path / "models", "hyper", 64)
    assert path.name == "voxdyn_hyper_64.npz"
    model.save_voxdyn(path, vd)
    loaded = model.load_voxdyn(path, node2node="hyper", ncell=64)
    assert_same(loaded, vd)
    for again, before in zip(loaded.index, vd.index, strict=True):
        np.testing.assert_array_equal(again, before)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_missing_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"x\.npz: no such file; .*--node2node=eom --ncell=8"
    ):
        model.load_voxdyn(tmp_path / "x.npz", "eom", 8)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"node2node": "eom"}, "fitted with --node2node=hyper, but --node2node=eom is asked for"),
        ({"ncell": 128}, "fitted with --ncell=64, but --ncell=128 is asked for"),
    ],
)
def test_file_of_something_else(vd, tmp_path, asked, message):
    path = model.save_voxdyn(tmp_path / "x.npz", vd)
    with pytest.raises(ValueError, match=f"x.npz: was {message}"):
        model.load_voxdyn(path, **asked)


def test_other_format_version(vd, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "FORMAT_VERSION", 99)
    path = model.save_voxdyn(tmp_path / "x.npz", vd)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"x\.npz: format version 99, but this program reads"):
        model.load_voxdyn(path)


def test_damaged_files(vd, tmp_path):
    path = model.save_voxdyn(tmp_path / "x.npz", vd)
    content = path.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        b"",
        b"no archive",
        content[:500] + b"x" + content[501:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.npz: damaged or not a Voxel-Dynamics file"):
            model.load_voxdyn(path)


def test_file_that_lacks_an_array(vd, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, format_version=model.FORMAT_VERSION, centroids=vd.centroids)
    with pytest.raises(ValueError, match=r"x\.npz: lacks columns, counts"):
        model.load_voxdyn(path)
