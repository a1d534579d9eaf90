"""Pairs by blocks against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import random_rows
from test_lookup import NUM_CELLS, clustered_cells, padded

from hypertrack_jax.voxdyn.hit_pairs import pair_block, pair_lists


@pytest.mark.parametrize("size", [16, 100, 5000])
def test_blocks_of_pairs_have_every_edge_once(size):
    rng = np.random.default_rng(3)
    dense, rows = random_rows(rng, NUM_CELLS, 0.3)
    cell = clustered_cells(rng, 70)
    capacities = {"block_capacity": 512, "place_capacity": 4096}
    made = pair_lists(rows, padded(cell, 128), np.int32(2), **capacities)
    block = jax.jit(pair_block, static_argnames="size")
    found = []
    for first in range(0, int(made.num_raw), size):
        pairs = block(made, jnp.int32(first), size=size)
        columns = (pairs.one, pairs.other, pairs.count)
        found += list(zip(*(np.asarray(c)[np.asarray(pairs.mask)] for c in columns), strict=True))
    counts = np.pad(dense, (0, 1))[cell[:, None], cell[None, :]]
    wanted = [(i, j, counts[i, j]) for i, j in zip(*np.nonzero(counts >= 2), strict=True) if i > j]
    assert sorted((max(i, j), min(i, j), n) for i, j, n in found) == sorted(wanted)
    assert len(wanted) > 100
    assert [one for one, _, _ in found] == sorted(one for one, _, _ in found)
    np.testing.assert_array_equal(np.asarray(made.degree)[:70], (counts >= 2).sum(axis=1))
    assert made.num_places <= 4096
    small = pair_lists(rows, padded(cell, 128), np.int32(2), block_capacity=512, place_capacity=8)
    assert small.num_places == made.num_places > 8
