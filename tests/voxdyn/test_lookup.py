"""The look-up against dense matrices."""

import jax.numpy as jnp
import numpy as np
import pytest
from dense import random_rows

from hypertrack_jax.voxdyn import lookup
from hypertrack_jax.voxdyn.connectivity import Rows
from hypertrack_jax.voxdyn.hit_edges import connect_hits, edges_of_cells

NUM_CELLS = 90


def count_blocks(row_length):
    """The blocks that rows of these lengths take."""
    return int(np.sum(-(-row_length.astype(np.int64) // lookup.BLOCK)))


def padded(cell, size, num_cells=NUM_CELLS):
    """Hits without a cell behind the others."""
    return np.pad(cell, (0, size - len(cell)), constant_values=num_cells)


def look_up(rows, cell, min_count=1, block_capacity=512, list_capacity=4096, edge_capacity=8192):
    """The edges by one program after another, how many there are, and what joins cells."""
    cells = lookup.group_hits(padded(cell, 128), NUM_CELLS)
    connected = lookup.find_connected(rows, cells, np.int32(min_count), capacity=block_capacity)
    lists = lookup.list_senders(rows, cells, connected, capacity=list_capacity)
    degree = np.asarray(connected.list_length)[np.asarray(cells.hit_slot)]
    edges = connect_hits(cells, lists, connected.list_length, capacity=edge_capacity)
    return edges, int(degree.sum()), connected


def sorted_edges(senders, receivers, counts):
    order = np.lexsort([senders, receivers])
    return np.stack([receivers, senders, counts])[:, order]


def clustered_cells(rng, num_hits):
    """Some cells with many hits, many with none; hit order and cell order have nothing in common.

    Rows are longer than one block, and a few hits have no cell.
    """
    cell = rng.choice(NUM_CELLS, num_hits, p=rng.dirichlet(np.full(NUM_CELLS, 0.3)))
    cell[rng.choice(num_hits, 3, replace=False)] = NUM_CELLS
    return cell.astype(np.int32)


@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("fill", [0.05, 0.8])
def test_edges_are_those_of_the_dense_matrix(fill, min_count):
    rng = np.random.default_rng(2)
    dense, rows = random_rows(rng, NUM_CELLS, fill)
    cell = clustered_cells(rng, 70)
    made, num_edges, _ = look_up(rows, cell, min_count)
    edges = [np.asarray(part)[:num_edges] for part in made[:3]]
    padded = np.pad(dense, (0, 1))
    counts = padded[cell[:, None], cell[None, :]]
    receivers, senders = np.nonzero(counts >= min_count)
    assert not made.is_overflow
    assert len(receivers) > 10
    assert (np.diff(edges[1]) >= 0).all()
    np.testing.assert_array_equal(
        sorted_edges(*edges), sorted_edges(senders, receivers, counts[receivers, senders])
    )


def test_senders_follow_their_cells():
    rng = np.random.default_rng(3)
    _, rows = random_rows(rng, NUM_CELLS, 0.5)
    cell = clustered_cells(rng, 70)
    made, num_edges, _ = look_up(rows, cell)
    receivers, senders = np.asarray(made.receivers)[:num_edges], np.asarray(made.senders)
    sender_cell = cell[senders[:num_edges]]
    assert (np.diff(sender_cell)[np.diff(receivers) == 0] >= 0).all()


def test_every_exceeded_capacity_is_reported():
    rng = np.random.default_rng(3)
    _, rows = random_rows(rng, NUM_CELLS, 0.4)
    cell = clustered_cells(rng, 50)
    made, num_edges, connected = look_up(rows, cell)
    occupied = np.unique(cell[cell < NUM_CELLS])
    needed = {
        "block_capacity": count_blocks(np.diff(rows.row_offsets)[occupied]),
        "list_capacity": int(connected.list_length.sum()),
        "edge_capacity": num_edges,
    }
    assert not made.is_overflow
    for name, capacity in needed.items():
        assert not look_up(rows, cell, **{name: capacity})[0].is_overflow, name
        assert look_up(rows, cell, **{name: capacity - 1})[0].is_overflow, name


def test_padding_hits_make_no_edges():
    rng = np.random.default_rng(3)
    _, rows = random_rows(rng, NUM_CELLS, 0.4)
    cell = clustered_cells(rng, 50)
    num_edges = look_up(rows, cell)[1]
    made, *_ = look_up(rows, cell, edge_capacity=num_edges)
    assert not made.is_overflow
    assert np.asarray(made.receivers).max() < 50


def test_exact_capacities_give_the_same_edges():
    rng = np.random.default_rng(4)
    _, rows = random_rows(rng, NUM_CELLS, 0.4)
    cell = clustered_cells(rng, 50)
    wide, num_edges, connected = look_up(rows, cell)
    capacity = int(connected.list_length.sum())
    tight, *_ = look_up(rows, cell, list_capacity=capacity, edge_capacity=num_edges)
    for one, other in zip(wide[:3], tight[:3], strict=True):
        np.testing.assert_array_equal(one[:num_edges], other)


def test_more_edges_than_32_bits_count_overflow():
    """Two full cells: 65536^2 + 65536^2 pairs, which wrap around to none."""
    rows = Rows(
        jnp.array([0, 1, 2], jnp.int32), jnp.array([0, 1], jnp.int32), jnp.ones(2, jnp.uint16)
    )
    cell = np.repeat(np.arange(2, dtype=np.int32), 2**16)
    cells = lookup.group_hits(padded(cell, 2**17 + 1, 2), 2)
    connected = lookup.find_connected(rows, cells, np.int32(1), capacity=4)
    assert connected.list_length[:2].tolist() == [2**16, 2**16]
    lists = lookup.list_senders(rows, cells, connected, capacity=2**17)
    assert not lists.is_overflow
    edges = connect_hits(cells, lists, connected.list_length, capacity=2**18)
    assert edges.is_overflow
    assert edges.num_edges == lookup.TOO_MANY


def test_hits_are_grouped_by_cell():
    cell = np.array([7, 2, 90, 7, 2, 7, 90], np.int32)
    cells = lookup.group_hits(cell, NUM_CELLS)
    np.testing.assert_array_equal(cells.cell, [2, 7, 90, 90, 90, 90, 90])
    np.testing.assert_array_equal(cells.hit_start, [0, 2, 5, 7, 7, 7, 7, 7])
    np.testing.assert_array_equal(cells.order, [1, 4, 0, 3, 5, 2, 6])
    np.testing.assert_array_equal(cells.hit_slot, [1, 0, 2, 1, 0, 1, 2])


def test_the_whole_look_up_tells_what_it_needs():
    """Guessed capacities give the edges of measured ones, or say which ones would have."""
    rng = np.random.default_rng(7)
    _, rows = random_rows(rng, NUM_CELLS, 0.4)
    cell = clustered_cells(rng, 50)
    expected, num_edges, _ = look_up(rows, cell)
    occupied = np.unique(cell[cell < NUM_CELLS])
    num_blocks = count_blocks(np.diff(rows.row_offsets)[occupied])

    def whole(block_capacity, edge_capacity):
        return edges_of_cells(
            rows,
            padded(cell, 128),
            np.int32(1),
            block_capacity=block_capacity,
            edge_capacity=edge_capacity,
        )

    found = whole(num_blocks, num_edges)
    assert not found.edges.is_overflow
    assert (found.num_blocks, found.edges.num_edges) == (num_blocks, num_edges)
    for one, other in zip(expected[:3], found.edges[:3], strict=True):
        np.testing.assert_array_equal(one[:num_edges], other)
    for capacities in ((num_blocks - 1, num_edges), (num_blocks, num_edges - 1)):
        assert whole(*capacities).edges.is_overflow
    assert whole(1, num_edges).num_blocks == num_blocks
    assert whole(num_blocks, 1).edges.num_edges == num_edges


def test_a_matrix_without_entries_makes_no_edges():
    rows = Rows(np.zeros(91, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint16))
    cell = np.arange(10, dtype=np.int32)
    found = edges_of_cells(rows, cell, np.int32(1), block_capacity=4, edge_capacity=8)
    assert (found.edges.num_edges, found.num_blocks) == (0, 0)
    assert not found.edges.is_overflow


def test_selected_bits_are_those_set():
    rng = np.random.default_rng(5)
    words = np.append(rng.integers(0, 2**32, 200), [1, 2**31, 2**32 - 1]).astype(np.uint32)
    for word in words:
        places = [k for k in range(32) if int(word) >> k & 1]
        found = lookup._select_bit(
            jnp.full(len(places), word), jnp.arange(len(places), dtype=jnp.int32)
        )
        assert found.tolist() == places


def test_the_look_up_is_one_program_for_events_of_one_bucket():
    """Events of one bucket share their programs: nothing is traced anew."""
    rng = np.random.default_rng(6)
    _, rows = random_rows(rng, NUM_CELLS, 0.3)
    look_up(rows, clustered_cells(rng, 50))
    programs = (lookup.find_connected, lookup.list_senders, connect_hits)
    before = [program._cache_size() for program in programs]
    for num_hits in (20, 60, 90):
        look_up(rows, clustered_cells(rng, num_hits), min_count=2)
    assert [program._cache_size() for program in programs] == before
