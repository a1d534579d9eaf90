"""Host side: C in a few megabytes, small enough to travel with a model.

It keeps the pairs of cells that were counted at least `min_count` times, all of them and no others,
so the candidate graph is the same. Counts are rounded to one of at most 256 levels: they are exact
up to 50, and further up the levels grow by 4 %, so that a count is wrong by 2 % at most. A network
with log C among its inputs sees that as an error of at most 0.02. A `min_count` above the one kept
selects by the rounded counts.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8, UInt16

from hypertrack_jax.errors import UserError
from hypertrack_jax.memory import require_memory
from hypertrack_jax.npz import ArrayType
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT, MAX_ENTRIES, Rows, mirror_rows
from hypertrack_jax.voxdyn.model import VoxelDynamics, make_voxdyn, required_count

GROWTH = 1.04
"""Ratio of neighbouring levels of counts, where it is more than a step of 1."""
_BYTES_PER_PAIR = 80
"""Memory that unpacking takes for each pair of cells, about."""
ARRAYS = {
    "node2node": ArrayType(np.str_, ()),
    "centroids": ArrayType(np.float32, ("cell", 3)),
    "space": ArrayType(np.float32, (2, 3)),
    "num_events": ArrayType(np.int64, ()),
    "objective": ArrayType(np.float64, ("iteration",)),
    "histogram": ArrayType(np.int64, ("count",)),
    "min_count": ArrayType(np.int64, ()),
    "row_lengths": ArrayType(np.int32, ("cell",)),
    "steps": ArrayType(np.uint8, (3, "pair")),
    "levels": ArrayType(np.uint16, ("level",)),
    "codes": ArrayType(np.uint8, ("pair",)),
}
"""What a file holds of a `CompactVoxdyn`."""


class CompactVoxdyn(NamedTuple):
    """An estimator without its rare pairs, in arrays that compress well.

    The fields that it does not explain are those of `VoxelDynamics`.
    """

    node2node: str | np.ndarray
    centroids: Float32[np.ndarray, "cell 3"]
    space: Float32[np.ndarray, "2 3"]
    num_events: int | np.ndarray
    objective: Float64[np.ndarray, " iteration"]
    histogram: Int64[np.ndarray, " count"]
    min_count: int | np.ndarray
    """Smallest count kept."""
    row_lengths: Int32[np.ndarray, " cell"]
    """Number of pairs u <= v with each u."""
    steps: UInt8[np.ndarray, "3 pair"]
    """Cell v of each pair, less that of the pair before it, or for the first of a row less u; the
    lowest byte comes first."""
    levels: UInt16[np.ndarray, " level"]
    """Counts to choose from, ascending."""
    codes: UInt8[np.ndarray, " pair"]
    """Level of each pair's count."""


def compact_voxdyn(vd: VoxelDynamics, min_count: float | int | None = None) -> CompactVoxdyn:
    """Packs an estimator.

    Args:
      vd: the estimator.
      min_count: smallest count to keep, as `count_threshold` takes it; None keeps all.

    Raises:
      UserError: the estimator does not hold counts that small.
    """
    threshold = required_count(vd, min_count)
    row_offsets, columns, counts = (np.asarray(part) for part in vd.rows)
    row = np.repeat(np.arange(vd.num_cells, dtype=np.int32), np.diff(row_offsets))
    is_kept = (columns >= row) & (counts >= threshold)
    row, columns, counts = row[is_kept], columns[is_kept], counts[is_kept]
    is_first = np.diff(row, prepend=-1) > 0
    steps = np.where(is_first, columns - row, np.diff(columns, prepend=0)).astype("<u4")
    levels = count_levels(threshold)
    halfway = (levels[1:] + levels[:-1].astype(np.float64)) / 2
    return CompactVoxdyn(
        node2node=vd.node2node,
        centroids=np.asarray(vd.centroids),
        space=vd.space,
        num_events=vd.num_events,
        objective=vd.objective,
        histogram=vd.histogram,
        min_count=threshold,
        row_lengths=np.bincount(row, minlength=vd.num_cells).astype(np.int32),
        steps=np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 4).T[:3]),
        levels=levels,
        codes=np.searchsorted(halfway, counts).astype(np.uint8),
    )


def unpacked_voxdyn(compact: CompactVoxdyn, where: str) -> VoxelDynamics:
    """The estimator on the device.

    Args:
      compact: what `compact_voxdyn` made.
      where: the file to name.

    Raises:
      UserError: the arrays do not fit together, or need more memory than there is.
    """
    num_cells, num_pairs = len(compact.row_lengths), len(compact.codes)
    require_memory(_BYTES_PER_PAIR * num_pairs, f"{where}: C with {num_pairs} pairs", "fewer cells")
    length = compact.row_lengths
    is_sound = (
        (length >= 0).all()
        and length.sum(dtype=np.int64) == num_pairs <= MAX_ENTRIES // 2
        and (num_pairs == 0 or compact.codes.max() < len(compact.levels))
    )
    columns = np.zeros(0, np.int64)
    if is_sound:
        row = np.repeat(np.arange(num_cells), length)
        columns = _columns(compact.steps, row, length)
        # The look-up does not check columns, so they are checked here.
        is_first = np.diff(row, prepend=-1) > 0
        is_ascending = is_first | (np.diff(columns, prepend=-1) > 0)
        is_sound = is_ascending.all() and (columns < num_cells).all()
    if not is_sound:
        raise UserError(f"{where}: the rows of C do not fit together; get the file anew.")
    row_offsets = np.append(0, np.cumsum(length)).astype(np.int32)
    upper = Rows(row_offsets, columns.astype(np.int32), compact.levels[compact.codes])
    return make_voxdyn(
        str(compact.node2node),
        compact.centroids,
        mirror_rows(upper),
        space=compact.space,
        num_events=int(compact.num_events),
        objective=compact.objective,
        histogram=compact.histogram,
        min_count=int(compact.min_count),
    )


def count_levels(least: int) -> UInt16[np.ndarray, " level"]:
    """The levels, from `least` on, that counts are rounded to."""
    levels = [least]
    while levels[-1] < MAX_COUNT:
        levels.append(min(max(levels[-1] + 1, int(GROWTH * levels[-1])), MAX_COUNT))
    return np.array(levels, np.uint16)


def _columns(
    steps: UInt8[np.ndarray, "3 pair"],
    row: Int64[np.ndarray, " pair"],
    length: Int32[np.ndarray, " cell"],
) -> Int64[np.ndarray, " pair"]:
    """Cell v of each pair."""
    step = steps[0] + (steps[1].astype(np.int64) << 8) + (steps[2].astype(np.int64) << 16)
    walked = np.append(0, np.cumsum(step))
    return row + walked[1:] - walked[(np.cumsum(length) - length)[row]]
