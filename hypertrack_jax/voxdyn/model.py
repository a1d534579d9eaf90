"""Host side: the Voxel-Dynamics estimator, from hits to candidate edges."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Float64, Int64

from hypertrack_jax.capacities import capacity_for
from hypertrack_jax.errors import UserError, warn_user
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT, Rows
from hypertrack_jax.voxdyn.voronoi import VoronoiIndex, build_index

SPACE_SLACK = 0.25
"""How far beyond the training hits a hit may lie, as a fraction of their extent."""
_LEAST_HITS_WITH_EXTENT = 50
"""Fewer hits may all lie near the origin."""
_LARGEST_EXTENT_RATIO = 6.5
"""Of the training hits and an event in mm; hits of the innermost barrel alone have 6."""
_BEAM_PIPE = 0.01
"""Its radius over that of the detector; of the innermost layer of TrackML's it is 0.03."""


class VoxelDynamics(NamedTuple):
    """A fitted graph constructor: cells of space and which of them particles connect."""

    node2node: str
    """Topology of the true edges that were counted."""
    space: Float32[np.ndarray, "2 3"]
    """Smallest and largest x, y, z of the hits that the centroids were fitted to, in mm."""
    num_events: int
    """Events counted."""
    objective: Float64[np.ndarray, " iteration"]
    """Mean squared distance of hit and centroid before each iteration of the fit, in mm^2."""
    histogram: Int64[np.ndarray, " count"]
    """Number of pairs of cells u <= v with each count, before any were left out."""
    min_count: int
    """Smallest count that `rows` holds."""
    rows: Rows
    """C, both halves."""
    index: VoronoiIndex
    """Search index over the centroids."""

    @property
    def centroids(self) -> Float32[Array | np.ndarray, "cell 3"]:
        """Cell centres in mm."""
        return self.index.centroids

    @property
    def num_cells(self) -> int:
        """V."""
        return len(self.index.centroids)


def make_voxdyn(
    node2node: str,
    centroids: Float32[np.ndarray, "cell 3"],
    rows: Rows,
    *,
    space: Float32[np.ndarray, "2 3"],
    num_events: int,
    objective: Float64[np.ndarray, " iteration"],
    histogram: Int64[np.ndarray, " count"],
    min_count: int = 1,
) -> VoxelDynamics:
    """An estimator on the device from its centroids and its C; the search index is made here.

    Args:
      node2node: topology of the true edges.
      centroids: positions in mm.
      rows: C, both halves.
      space: smallest and largest coordinates of the training hits, in mm.
      num_events: events counted.
      objective: of the centroid fit, in mm^2.
      histogram: number of pairs of cells u <= v with each count, before any were left out.
      min_count: smallest count in `rows`.

    Returns:
      The estimator.
    """
    return VoxelDynamics(
        node2node=node2node,
        space=space,
        num_events=num_events,
        objective=objective,
        histogram=histogram,
        min_count=min_count,
        rows=jax.device_put(rows),
        index=jax.device_put(build_index(centroids)),
    )


def count_threshold(histogram: Int64[np.ndarray, " count"], min_count: float | int) -> int:
    """The smallest count that makes edges.

    Args:
      histogram: number of pairs of cells with each count.
      min_count: that count itself, from 1 on; or, between 0 and 1, a quantile: the rarest pairs of
        cells are left out as long as they hold no more than this share of all pairs counted.

    Returns:
      The count.

    Raises:
      UserError: neither a count that C can hold nor a quantile; or no pair was counted that often.
    """
    require_min_count(min_count)
    if min_count < 1:
        pairs = np.cumsum(histogram * np.arange(len(histogram)))
        return max(1, int(np.searchsorted(pairs, min_count * pairs[-1:].sum(), side="right")))
    if 1 < min_count >= len(histogram):
        raise UserError(
            f"min_count={min_count}: no pair of cells was counted more than {len(histogram) - 1} "
            "times, so that there would be no edges; choose a smaller one."
        )
    return int(min_count)


def require_min_count(min_count: float | int) -> None:
    """Raises `UserError` unless `min_count` is a count that C can hold, or a quantile."""
    is_count = 1 <= min_count <= MAX_COUNT and min_count == int(min_count)
    if not (is_count or 0 < min_count < 1):
        raise UserError(
            f"min_count={min_count}: expected a whole number from 1 to {MAX_COUNT}, at which "
            "counts saturate, or a quantile between 0 and 1."
        )


def required_count(vd: VoxelDynamics, min_count: float | int | None) -> int:
    """`count_threshold` of an estimator; None gives the smallest count that it holds.

    Raises:
      UserError: the estimator does not hold counts that small.
    """
    threshold = vd.min_count if min_count is None else count_threshold(vd.histogram, min_count)
    if threshold < vd.min_count:
        raise UserError(
            f"min_count={min_count} is asked for, but this estimator was loaded without counts "
            f"below {vd.min_count}; load it with the smaller min_count."
        )
    return threshold


def is_inside(
    space: Float32[Array | np.ndarray, "2 3"], position: Float32[Array | np.ndarray, "hit 3"]
) -> Bool[Array | np.ndarray, " hit"]:
    """Whether each hit lies in the space of the training hits, or not far outside."""
    slack = SPACE_SLACK * (space[1] - space[0])
    lower, upper = (space[0] - slack)[None, :], (space[1] + slack)[None, :]
    is_within: Any = (position >= lower) & (position <= upper)
    return is_within.all(axis=1)


def warn_of_outside(vd: VoxelDynamics, num_outside: int, num_hits: int) -> None:
    """Warns of hits outside the training space.

    Raises:
      UserError: all hits lie outside.
    """
    if not num_outside:
        return
    message = (
        f"{num_outside} of {num_hits} hits lie outside the space of the training hits, "
        f"{vd.space[0].tolist()} to {vd.space[1].tolist()} mm"
    )
    if num_outside == num_hits:
        raise UserError(f"{message}; give positions in mm, or fit Voxel-Dynamics to this detector.")
    warn_user(f"{message}, and get no edges.")


def warn_of_places(vd: VoxelDynamics, position: Float32[np.ndarray, "hit 3"]) -> None:
    """Warns where positions seem not to be in mm, and of hits in the beam pipe.

    Args:
      vd: the estimator, whose training hits the event is compared with.
      position: x, y, z of each hit, as the user gave them.

    Raises:
      UserError: most hits lie in the beam pipe.
    """
    if len(position) < _LEAST_HITS_WITH_EXTENT:
        return
    reach, expected = float(np.abs(position).max()), float(np.abs(vd.space).max())
    if reach * _LARGEST_EXTENT_RATIO < expected:
        unit, factor = ("cm", 10) if reach * 100 > expected else ("m", 1000)
        return warn_user(
            f"no coordinate of the {len(position)} hits is larger than {reach:.3g}, while those of "
            f"the training reach {expected:.3g} mm; if the positions are in {unit}, multiply them "
            f"by {factor} to give them in mm."
        )
    pipe = _BEAM_PIPE * float(np.abs(vd.space[:, :2]).max())
    number = int((np.hypot(*position[:, :2].T) < pipe).sum())
    if not number or np.hypot(*np.asarray(vd.centroids)[:, :2].T).min() < pipe:
        return
    message = (
        f"{number} of {len(position)} hits lie within {pipe:.3g} mm of the beam line, where the "
        "training had none"
    )
    if 2 * number > len(position):
        raise UserError(f"{message}; give positions in mm, with the beam along z.")
    warn_user(f"{message}.")


def pad_hits(position: Float32[np.ndarray, "hit 3"]) -> Float32[np.ndarray, "padded 3"]:
    """Repeats the last hit up to a bucket size; copies are as quick to assign as real hits."""
    num_hits = len(position)
    return np.pad(position, ((0, capacity_for(num_hits) - num_hits), (0, 0)), mode="edge")
