"""The candidate graph, compared with dense matrices."""

import jax
import numpy as np
import pytest
from dense import to_dense
from toy import helix_event

from hypertrack_jax import memory
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.topology import truth_edges
from hypertrack_jax.reconstruction import candidates
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.reconstruction.capacities import GraphCapacities
from hypertrack_jax.voxdyn import model
from hypertrack_jax.voxdyn.connectivity import Rows
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.voronoi import assign_cells

EVENTS = [helix_event(seed=7, num_particles=25, event_id=event_id) for event_id in range(1, 7)]


@pytest.fixture(scope="module")
def vd():
    return fit_voxdyn(EVENTS, 64, "hyper", num_iterations=2)


def as_set(edges):
    return set(zip(*(part.tolist() for part in edges[:3]), strict=True))


def dense_edges(vd, position, min_count=1):
    """(sender, receiver, count) of every pair of hits whose cells C connects."""
    cell = np.asarray(assign_cells(vd.index, position))
    counts = to_dense(vd.rows)[cell[:, None], cell[None, :]]
    receivers, senders = np.nonzero(counts >= min_count)
    return as_set((senders, receivers, counts[receivers, senders]))


@pytest.mark.parametrize("min_count", [None, 1, 2])
def test_edges_join_hits_of_connected_cells(vd, min_count):
    position = helix_event(seed=8, num_particles=40).position
    edges = predict_edges(vd, position, min_count)
    expected = dense_edges(vd, position, min_count or 1)
    assert as_set(edges) == expected
    assert len(edges.senders) == len(expected) > 1000
    assert (np.diff(edges.receivers) >= 0).all()


def test_capacities_that_are_too_small_change_nothing(vd, monkeypatch):
    position = helix_event(seed=8, num_particles=40).position
    whole = predict_edges(vd, position)
    tiny = GraphCapacities(num_blocks=1, num_edges=2)
    monkeypatch.setattr(candidates, "graph_capacities", lambda *_: tiny)
    for one, other in zip(predict_edges(vd, position), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_true_edges_of_training_events_are_all_found(vd):
    for event in EVENTS:
        found = as_set(predict_edges(vd, event.position)[:2])
        assert found.issuperset(as_set(truth_edges(event, "hyper")))


def test_no_hit_and_one_hit(vd):
    assert predict_edges(vd, np.zeros((0, 3), np.float32)).senders.shape == (0,)
    event = EVENTS[0]
    particle_hit = event.position[event.hit_particle >= 0][:1]
    edges = predict_edges(vd, particle_hit)
    assert (edges.senders.tolist(), edges.receivers.tolist()) == ([0], [0])


def test_an_estimator_that_connects_nothing_makes_no_edges(vd):
    none = Rows(np.zeros(65, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint16))
    assert len(predict_edges(vd._replace(rows=none), EVENTS[0].position).senders) == 0


def test_hits_outside_the_training_space_get_no_edges_and_a_warning(vd):
    position = helix_event(seed=8, num_particles=40).position
    reference = predict_edges(vd, position)
    outside = np.array([[1e5, 2e5, -3e5], [0, 100, 1e7]], np.float32)
    with pytest.warns(UserWarning, match=rf"2 of {len(position) + 2} hits lie outside the space"):
        edges = predict_edges(vd, np.vstack([outside[:1], position, outside[1:]]))
    shifted = (reference.senders + 1, reference.receivers + 1, reference.counts)
    assert as_set(edges) == as_set(shifted)


def test_hits_a_little_outside_belong_to_the_outermost_cells(vd):
    x, y, z = vd.space[1] + 0.2 * (vd.space[1] - vd.space[0])
    position = np.array([[x, y, z], [0, 0, z]], np.float32)
    assert as_set(predict_edges(vd, position)) == dense_edges(vd, position)


def test_an_event_in_other_units_is_refused(vd):
    with pytest.raises(ValueError, match=r"lie outside the space .* give positions in mm"):
        predict_edges(vd, 1e4 * EVENTS[0].position[:1] + np.float32(1e4))


@pytest.mark.parametrize(("factor", "unit"), [(0.1, "cm"), (0.001, "m")])
def test_positions_in_larger_units_give_a_warning_that_names_them(vd, factor, unit):
    """They lie inside the space, all near its centre."""
    position = helix_event(seed=8, num_particles=40).position
    factor = np.float32(factor)
    message = rf"reach .* mm; if the positions are in {unit}, multiply them by {1 / factor:.0f} to"
    with pytest.warns(UserWarning, match=message):
        predict_edges(vd, position * factor)
    # Few hits may lie near the origin.
    predict_edges(vd, position[:40] * factor)


def test_hits_in_the_beam_pipe_are_told_and_refused_where_they_are_most(vd):
    position = helix_event(seed=8, num_particles=40).position
    position[:3, :2] = [[3, 0], [0, -4], [1, 1]]
    told = rf"^3 of {len(position)} hits lie within \S+ mm of the beam line, where the training had"
    with pytest.warns(UserWarning, match=told):
        predict_edges(vd, position)
    # A detector that measures there.
    inner = vd.index._replace(centroids=np.vstack([vd.centroids[1:], position[:1]]))
    model.warn_of_places(vd._replace(index=inner), position)
    position[:-3, :2] = [2, 1]
    with pytest.raises(UserError, match=r" lie within .*; give positions in mm, with the beam al"):
        predict_edges(vd, position)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8"])
@pytest.mark.parametrize("is_64_bit", [False, True])
def test_positions_of_other_types_give_the_same_edges(vd, dtype, is_64_bit):
    position = EVENTS[0].position
    expected = predict_edges(vd, position)
    with jax.enable_x64(is_64_bit):
        for one, other in zip(predict_edges(vd, position.astype(dtype)), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_masked_positions_are_refused(vd):
    masked = np.ma.masked_array(EVENTS[0].position, mask=EVENTS[0].position > 100)
    with pytest.raises(UserError, match=r"masked array, .* such as position\[~mask\]"):
        predict_edges(vd, masked)


def test_a_count_that_no_pair_has_is_told(vd):
    most = len(vd.histogram) - 1
    assert len(predict_edges(vd, EVENTS[0].position, most).senders) > 0
    for min_count in (most + 1, 65535):
        with pytest.raises(
            UserError, match=rf"no pair of cells was counted more than {most} times"
        ):
            predict_edges(vd, EVENTS[0].position, min_count)


def test_quantile_leaves_out_no_more_than_its_share_of_the_pairs(vd):
    counts = np.asarray(vd.rows.counts)
    threshold = model.count_threshold(vd.histogram, 0.2)
    row = np.repeat(np.arange(64), np.diff(vd.rows.row_offsets))
    upper = counts[np.asarray(vd.rows.columns) >= row].astype(np.int64)
    assert 1 < threshold
    assert upper[upper < threshold].sum() <= 0.2 * upper.sum()
    assert upper[upper <= threshold].sum() > 0.2 * upper.sum()
    position = EVENTS[0].position
    assert as_set(predict_edges(vd, position, 0.2)) == dense_edges(vd, position, threshold)


def test_counts_that_are_not_held_are_not_asked_for(vd):
    with pytest.raises(ValueError, match="loaded without counts below 3"):
        predict_edges(vd._replace(min_count=3), EVENTS[0].position, 2)


def test_graph_larger_than_memory(vd, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"with num_blocks=\d+, num_edges=\d+ needs about"):
        predict_edges(vd, EVENTS[0].position)
