"""C as a dense matrix, the oracle of every sparse form of it."""

import jax.numpy as jnp
import numpy as np

from hypertrack_jax.voxdyn.connectivity import Rows


def to_dense(rows: Rows):
    offsets = np.asarray(rows.row_offsets)
    dense = np.zeros((len(offsets) - 1,) * 2, np.int64)
    for u in range(len(dense)):
        row = slice(offsets[u], offsets[u + 1])
        assert (np.diff(rows.columns[row]) > 0).all()
        dense[u, rows.columns[row]] = rows.counts[row]
    return dense


def from_dense(dense) -> Rows:
    row, column = np.nonzero(dense)
    offsets = np.append(0, np.cumsum(np.bincount(row, minlength=len(dense))))
    counts = dense[row, column].astype(np.uint16)
    return Rows(offsets.astype(np.int32), column.astype(np.int32), counts)


def random_rows(rng, num_cells, fill):
    """A symmetric matrix, dense and as rows on the device."""
    dense = rng.integers(1, 5, (num_cells, num_cells)) * (rng.random((num_cells,) * 2) < fill)
    dense = np.triu(dense) + np.triu(dense, 1).T
    return dense, Rows(*map(jnp.asarray, from_dense(dense)))
