"""Counting and look-up against dense matrices and plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.voxdyn import connectivity
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT, Rows


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


def to_dense(rows: Rows):
    offsets = np.asarray(rows.row_offsets)
    dense = np.zeros((len(offsets) - 1,) * 2, np.int64)
    for u in range(len(dense)):
        row = slice(offsets[u], offsets[u + 1])
        assert (np.diff(rows.columns[row]) > 0).all()
        dense[u, rows.columns[row]] = rows.counts[row]
    return dense


def random_rows(rng, num_cells, fill):
    dense = rng.integers(1, 5, (num_cells, num_cells)) * (rng.random((num_cells,) * 2) < fill)
    dense = np.triu(dense) + np.triu(dense, 1).T
    row, column = np.nonzero(dense)
    offsets = np.append(0, np.cumsum(np.bincount(row, minlength=num_cells)))
    rows = Rows(*(part.astype(np.int32) for part in (offsets, column, dense[row, column])))
    return dense, Rows(*map(jnp.asarray, rows))


def test_counts_are_those_of_a_loop_over_the_edges():
    rng = np.random.default_rng(0)
    num_cells, dense, runs = 17, 0, []
    for _ in range(9):
        senders, receivers = symmetric_edges(rng, 40, 60)
        cell = rng.integers(0, num_cells, 40).astype(np.int32)
        dense += count_by_loop(senders, receivers, cell, num_cells)
        run = connectivity.count_event_pairs(senders, receivers, cell, num_cells)
        runs = connectivity.push_run(runs, run)
    rows = connectivity.to_rows(connectivity.merge_pairs(runs), num_cells)
    np.testing.assert_array_equal(to_dense(rows), dense)


def test_largest_cells_fit():
    last = connectivity.MAX_CELLS - 1
    ends = np.array([0, 1], np.int32)
    run = connectivity.count_event_pairs(
        ends, ends[::-1], np.array([last - 1, last], np.int32), connectivity.MAX_CELLS
    )
    rows = connectivity.to_rows(run, connectivity.MAX_CELLS)
    np.testing.assert_array_equal(rows.columns, [last, last - 1])
    np.testing.assert_array_equal(rows.row_offsets[-3:], [0, 1, 2])


def test_event_without_edges_counts_nothing():
    none = np.zeros(0, np.int32)
    run = connectivity.count_event_pairs(none, none, np.zeros(3, np.int32), 4)
    assert len(run) == 0
    assert (
        connectivity.to_rows(connectivity.merge_pairs([run, run]), 4).row_offsets.tolist()
        == [0] * 5
    )


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


def test_runs_stay_few_and_bounded():
    rng = np.random.default_rng(1)
    runs, total = [], []
    for _ in range(100):
        ones = connectivity.pack_pairs(rng.integers(0, 10_000, 50), np.ones(50, np.int64))
        run = connectivity.merge_pairs([ones])
        total.append(run)
        runs = connectivity.push_run(runs, run)
        assert len(runs) <= 8
        assert sum(map(len, runs)) <= 2 * len(runs[0])
    np.testing.assert_array_equal(
        connectivity.merge_pairs(runs), connectivity.merge_pairs(total[::-1])
    )


def lookup(rows, cell, slots=None, min_count=1, entry_capacity=4096, edge_capacity=4096):
    order, hits = connectivity.group_hits(cell)
    slots = np.array(slots or (0, len(hits.cell)), np.int32)
    hits = connectivity.pad_slots(hits, 64, len(rows.row_offsets) - 1)
    pairs = connectivity.connect_cells(
        rows, hits, slots, np.int32(min_count), capacity=entry_capacity
    )
    edges = connectivity.connect_hits(pairs, hits, capacity=edge_capacity)
    assert edges.is_overflow or int(pairs.num_edges) == int(edges.num_edges)
    return order, hits, edges


@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("slots", [None, (3, 11)])
def test_edges_are_those_of_the_dense_matrix(slots, min_count):
    rng = np.random.default_rng(2)
    dense, rows = random_rows(rng, 30, 0.2)
    cell = rng.integers(0, 30, 50).astype(np.int32)
    order, hits, edges = lookup(rows, cell, slots, min_count)
    first, last = slots or (0, len(np.unique(cell)))
    counts = dense[cell[order][:, None], cell[order][None, :]]
    counts[: hits.hit_start[first]] = 0
    counts[hits.hit_start[last] :] = 0
    receivers, senders = np.nonzero(counts >= min_count)
    num_edges = int(edges.num_edges)
    assert not edges.is_overflow
    assert num_edges == len(senders) > 50
    np.testing.assert_array_equal(edges.senders[:num_edges], senders)
    np.testing.assert_array_equal(edges.receivers[:num_edges], receivers)
    np.testing.assert_array_equal(edges.counts[:num_edges], counts[receivers, senders])


def test_every_exceeded_capacity_is_reported():
    rng = np.random.default_rng(3)
    _, rows = random_rows(rng, 30, 0.3)
    cell = rng.integers(0, 30, 50).astype(np.int32)
    num_edges = int(lookup(rows, cell)[2].num_edges)
    assert not lookup(rows, cell, edge_capacity=num_edges)[2].is_overflow
    assert lookup(rows, cell, edge_capacity=num_edges - 1)[2].is_overflow
    num_entries = int(np.diff(rows.row_offsets)[np.unique(cell)].sum())
    assert not lookup(rows, cell, entry_capacity=num_entries)[2].is_overflow
    assert lookup(rows, cell, entry_capacity=num_entries - 1)[2].is_overflow


def test_more_edges_than_32_bits_count_overflow():
    """Two full cells: 65536^2 + 65536^2 pairs, which wrap around to none."""
    rows = Rows(*(jnp.asarray(part, jnp.int32) for part in ([0, 1, 2], [0, 1], [1, 1])))
    cell = np.repeat(np.arange(2, dtype=np.int32), 2**16)
    _, hits = connectivity.group_hits(cell)
    hits = connectivity.pad_slots(hits, len(cell), 2)
    slots = np.array([0, 2], np.int32)
    pairs = connectivity.connect_cells(rows, hits, slots, np.int32(1), capacity=4)
    assert float(pairs.num_edges) == 2**33
    assert connectivity.connect_hits(pairs, hits, capacity=2**18).is_overflow


def test_bucket_sizes_are_a_ladder():
    sizes = sorted({connectivity.bucket_size(size) for size in range(1, 5000)})
    assert sizes == [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
    assert all(connectivity.bucket_size(size) >= size for size in range(1, 5000))
    assert all(connectivity.bucket_size(size) == size for size in sizes)
