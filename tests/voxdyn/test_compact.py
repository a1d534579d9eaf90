"""C in a few megabytes: the same pairs, and counts within 2 %."""

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.voxdyn.compact import compact_voxdyn, count_levels, unpacked_voxdyn
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT, Rows, mirror_rows
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.model import make_voxdyn
from hypertrack_jax.voxdyn.storage import load_voxdyn, save_voxdyn

NUM_CELLS = 70_000
"""Enough that a step from one column to the next takes three bytes."""


@pytest.fixture(scope="module")
def wide():
    """Few pairs of many cells, in rows of 0 to 40 entries, with counts of all sizes."""
    rng = np.random.default_rng(0)
    rows = []
    for u in range(0, NUM_CELLS, 100):
        rows.append(np.unique(rng.integers(u, NUM_CELLS, rng.integers(0, 40))))
    rows[0] = np.array([0, 1, NUM_CELLS - 1])
    offsets = np.zeros(NUM_CELLS + 1, np.int32)
    offsets[1::100] = [len(row) for row in rows]
    columns = np.concatenate(rows).astype(np.int32)
    counts = np.exp(rng.uniform(0, np.log(MAX_COUNT), len(columns))).astype(np.uint16)
    upper = Rows(np.cumsum(offsets, dtype=np.int32), columns, counts)
    return make_voxdyn(
        "hyper",
        rng.normal(0, 100, (NUM_CELLS, 3)).astype(np.float32),
        mirror_rows(upper),
        space=np.array([[-500.0] * 3, [500.0] * 3], np.float32),
        num_events=3,
        objective=np.array([2.0, 1.0]),
        histogram=np.bincount(counts).astype(np.int64),
    )


@pytest.mark.parametrize("min_count", [1, 12, 0.1])
def test_the_pairs_are_the_same_and_the_counts_near(wide, min_count, tmp_path):
    found = unpacked_voxdyn(compact_voxdyn(wide, min_count), "file")
    expected = load_voxdyn(save_voxdyn(tmp_path / "c.npz", wide), min_count=min_count)
    for name in ("row_offsets", "columns"):
        got, wanted = (np.asarray(getattr(vd.rows, name)) for vd in (found, expected))
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype
    got, wanted = (np.asarray(vd.rows.counts).astype(np.float64) for vd in (found, expected))
    assert np.abs(got / wanted - 1).max() <= 0.02
    assert (got[wanted <= 50] == wanted[wanted <= 50]).all()
    assert found.rows.counts.dtype == expected.rows.counts.dtype
    assert found.min_count == expected.min_count
    for name in ("node2node", "space", "num_events", "objective", "histogram"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.centroids, expected.centroids)


@pytest.mark.parametrize("least", [1, 2, 12, 300, MAX_COUNT])
def test_levels_reach_from_the_least_count_to_the_largest(least):
    levels = count_levels(least)
    assert levels[0] == least and levels[-1] == MAX_COUNT
    assert len(levels) <= 256
    assert (np.diff(levels.astype(int)) > 0).all()


def test_the_graph_has_the_same_edges():
    events = [helix_event(0, num_particles=20, event_id=i) for i in range(3)]
    voxdyn = fit_voxdyn(events, 64, "hyper", num_iterations=1)
    found = unpacked_voxdyn(compact_voxdyn(voxdyn, 2), "file")
    got, expected = (predict_edges(vd, events[0].position, 2) for vd in (found, voxdyn))
    assert len(expected.senders) > 100
    np.testing.assert_array_equal(got.senders, expected.senders)
    np.testing.assert_array_equal(got.receivers, expected.receivers)
    np.testing.assert_allclose(got.counts, expected.counts, rtol=0.02)
    with pytest.raises(ValueError, match="loaded without counts below 2"):
        predict_edges(found, events[0].position, 1)


def damaged_steps(compact, step):
    steps = compact.steps.copy()
    steps[:, 1] = step
    return compact._replace(steps=steps)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: damaged_steps(c, 255),  # beyond the last cell
        lambda c: damaged_steps(c, 0),  # one column twice
        lambda c: c._replace(row_lengths=c.row_lengths + 1),
        lambda c: c._replace(row_lengths=-c.row_lengths),
        lambda c: c._replace(levels=c.levels[:3]),
    ],
    ids=["beyond", "twice", "more", "negative", "levels"],
)
def test_rows_that_do_not_fit_together_are_refused(wide, damage):
    with pytest.raises(UserError, match=r"^file: the rows of C do not fit together; get .* anew"):
        unpacked_voxdyn(damage(compact_voxdyn(wide)), "file")


def test_no_pairs_at_all(wide):
    rows = Rows(np.zeros(NUM_CELLS + 1, np.int32), *(np.zeros(0, k) for k in (np.int32, np.uint16)))
    empty = unpacked_voxdyn(compact_voxdyn(wide._replace(rows=rows)), "file")
    assert len(empty.rows.columns) == 0 and empty.num_cells == NUM_CELLS
