"""Counting against dense matrices and plain loops."""

from itertools import islice

import numpy as np
import pytest
from dense import from_dense, random_rows, to_dense

from hypertrack_jax.voxdyn import connectivity
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT
from hypertrack_jax.voxdyn.lookup import BLOCK


def symmetric_edges(rng, num_hits, num_edges):
    """Random directed edges, each with its reverse, and some self-loops."""
    ends = rng.integers(0, num_hits, (2, num_edges))
    edges = np.unique(np.hstack([ends, ends[::-1], [np.arange(num_hits // 2)] * 2]), axis=1)
    return edges[0].astype(np.int32), edges[1].astype(np.int32)


def count_by_loop(senders, receivers, cell, num_cells):
    dense = np.zeros((num_cells, num_cells), np.int64)
    for i, j in zip(senders, receivers, strict=True):
        dense[cell[i], cell[j]] += 1
    return dense


def random_runs(rng, num_runs, num_keys, size):
    """Sorted runs of pairs, of which some have saturated in some runs."""
    return [
        connectivity.merge_pairs(
            [
                connectivity.pack_pairs(
                    rng.integers(0, num_keys, size), rng.choice([1, MAX_COUNT], size)
                )
            ]
        )
        for _ in range(num_runs)
    ]


def test_counts_are_those_of_a_loop_over_the_edges():
    rng = np.random.default_rng(0)
    num_cells, dense, runs = 17, 0, []
    for _ in range(9):
        senders, receivers = symmetric_edges(rng, 40, 60)
        cell = rng.integers(0, num_cells, 40).astype(np.int32)
        dense += count_by_loop(senders, receivers, cell, num_cells)
        runs.append(connectivity.count_event_pairs(senders, receivers, cell, num_cells))
    upper = connectivity.upper_rows(connectivity.merge_runs(runs), num_cells)
    np.testing.assert_array_equal(to_dense(upper), np.triu(dense))
    np.testing.assert_array_equal(to_dense(connectivity.mirror_rows(upper)), dense)


def test_largest_cells_fit():
    last = connectivity.MAX_CELLS - 1
    ends = np.array([0, 1], np.int32)
    run = connectivity.count_event_pairs(
        ends, ends[::-1], np.array([last - 1, last], np.int32), connectivity.MAX_CELLS
    )
    rows = connectivity.mirror_rows(connectivity.upper_rows([run], connectivity.MAX_CELLS))
    np.testing.assert_array_equal(rows.columns, [last, last - 1])
    np.testing.assert_array_equal(rows.row_offsets[-3:], [0, 1, 2])


def test_event_without_edges_counts_nothing():
    none = np.zeros(0, np.int32)
    run = connectivity.count_event_pairs(none, none, np.zeros(3, np.int32), 4)
    assert len(run) == 0
    upper = connectivity.upper_rows(connectivity.merge_runs([run, run]), 4)
    assert upper.row_offsets.tolist() == [0] * 5
    assert connectivity.mirror_rows(upper).row_offsets.tolist() == [0] * 5


def test_counts_saturate():
    half = connectivity.pack_pairs(np.array([5]), np.array([MAX_COUNT // 2 + 10]))
    one = connectivity.pack_pairs(np.array([6]), np.array([1]))
    merged = connectivity.merge_pairs([half, one, half])
    keys, counts = connectivity.unpack_pairs(merged)
    assert keys.tolist() == [5, 6]
    assert counts.tolist() == [MAX_COUNT, 1]
    keys, counts = connectivity.unpack_pairs(connectivity.merge_pairs([merged, merged]))
    assert keys.tolist() == [5, 6]
    assert counts.tolist() == [MAX_COUNT, 2]


def test_saturated_counts_survive_the_mirror_on_and_off_the_diagonal():
    pairs = connectivity.pack_pairs(np.array([0, 1, 3]), np.full(3, MAX_COUNT + 7))
    full = connectivity.mirror_rows(connectivity.upper_rows([pairs], 2))
    np.testing.assert_array_equal(to_dense(full), np.full((2, 2), MAX_COUNT))


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
@pytest.mark.parametrize("num_runs", [1, 5])
def test_runs_merged_piece_by_piece_are_the_runs_merged_at_once(num_runs, chunk):
    """With windows of a single pair, every pair is at a window's end."""
    runs = random_runs(np.random.default_rng(1), num_runs, num_keys=60, size=50)
    # No more than there are pairs: a merge that stands still would go on for ever.
    pieces = list(islice(connectivity.merge_runs(runs, chunk), sum(map(len, runs))))
    assert max(map(len, pieces)) <= max(chunk, num_runs)
    np.testing.assert_array_equal(np.concatenate(pieces), connectivity.merge_pairs(runs[::-1]))


def test_nothing_to_merge():
    assert list(connectivity.merge_runs([])) == []
    assert len(connectivity.upper_rows([], 3).columns) == 0


@pytest.mark.parametrize("num_cells", [1, 30])
def test_mirrored_half_is_the_whole(num_cells):
    dense, rows = random_rows(np.random.default_rng(2), num_cells, 0.3)
    for whole, before in zip(
        connectivity.mirror_rows(from_dense(np.triu(dense))), rows, strict=True
    ):
        np.testing.assert_array_equal(whole, before)
        assert whole.dtype == before.dtype


def test_more_entries_than_an_index_reaches(monkeypatch):
    monkeypatch.setattr(connectivity, "MAX_ENTRIES", 5)
    pieces = [connectivity.pack_pairs(np.array([0, 1, 4]), np.ones(3, np.int64))]
    with pytest.raises(ValueError, match=r"C at ncell=3 has about 6 entries, more than 5"):
        connectivity.upper_rows(pieces, 3)


def test_a_block_of_the_look_up_fits_behind_the_last_entry():
    """Its indices must not wrap to negative ones, which would be read."""
    assert np.int64(connectivity.MAX_ENTRIES) - 1 + BLOCK - 1 <= np.iinfo(np.int32).max
