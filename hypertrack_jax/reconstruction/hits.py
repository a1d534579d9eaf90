"""Both sides: the hits of an event as the stages take them, in an order that positions decide."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.cells import Cells, take_cells

CROWD, MOST_IN_CROWD = 0.02, 16
"""Side of a cube in mm, and most hits in it that are taken; a detector gives no more."""


class OrderedHits(NamedTuple):
    """The hits of an event in canonical order."""

    position: Float32[np.ndarray, "hit 3"]
    """x, y, z in mm."""
    order: Int[np.ndarray, " hit"]
    """Place of each in the event as it was given."""
    cells: Cells | None = None
    """Their clusters, of a model that looks at them."""


def canonical_order(position: Any, xp: Any = np) -> Any:
    """The order of hits by azimuth, then by x, y and z: it depends on their positions alone.

    Hits that a particle joins then lie near each other in memory. The azimuth is taken as
    y / (|x| + |y|), which rises with it and rounds alike on all backends.

    Args:
      position: x, y, z of each hit, [hit, 3], finite.
      xp: `numpy`, or `jax.numpy` in compiled programs.

    Returns:
      The place of each hit of the order in `position`. Hits at one position keep their order.
    """
    x, y, z = position[:, 0], position[:, 1], position[:, 2]
    total = xp.abs(x) + xp.abs(y)
    slope = y / xp.where(total > 0, total, 1)
    return xp.lexsort((z, y, x, xp.where(x >= 0, slope, 2 - slope)))


def ordered_hits(position: Any, cells: Cells | None = None) -> OrderedHits:
    """The hits in float32 and canonical order.

    Args:
      position: x, y, z in mm of each hit, [hit, 3], float32 or float64.
      cells: the clusters of the hits.

    Raises:
      UserError: positions of another shape or type, that are masked or not finite, or with more
        than `MOST_IN_CROWD` hits at nearly one of them; as many clusters as hits are not there.
    """
    hits = checked_positions(position)
    if cells is not None and len(cells.slant) != len(hits):
        raise UserError(
            f"there are {len(cells.slant)} clusters of cells for {len(hits)} hits; give the cells "
            "of these hits, one cluster for each."
        )
    order = canonical_order(hits)
    hits = hits[order]
    _require_apart(hits)
    return OrderedHits(hits, order, take_cells(cells, order))


def _require_apart(hits: Float32[np.ndarray, "hit 3"]) -> None:
    """Refuses hits that crowd: all are joined with all, which takes memory and time for nothing."""
    cube = np.clip(np.floor(hits.astype(np.float64) / CROWD), -(2**20), 2**20 - 1).astype(np.int64)
    key = ((cube + 2**20) << np.array([42, 21, 0])).sum(axis=1)
    order = np.argsort(key, kind="stable")
    start = np.flatnonzero(np.diff(key[order], prepend=-1))
    number = np.diff(start, append=len(key))
    if number.max(initial=0) > MOST_IN_CROWD:
        x, y, z = hits[order[start[np.argmax(number)]]].tolist()
        raise UserError(
            f"{number.max()} hits lie within {CROWD} mm at ({x:g}, {y:g}, {z:g}) mm, which no "
            "detector gives; remove copies and hits without a measurement, and give positions in "
            "mm."
        )


def require_cells(cells: Cells | None) -> Cells:
    """The clusters that a model looks at.

    Raises:
      UserError: there are none; it names the models that come with the package and need none.
    """
    if cells is not None:
        return cells
    from hypertrack_jax.model.weights import shipped_without_cells

    raise UserError(
        "this model looks at the shape of the hits' clusters, and there are no cells; give an "
        "event that has cells (TrackML's cells, with detectors.csv), or take a model that needs "
        "none: "
        f"{', '.join(shipped_without_cells())}."
    )


def checked_positions(position: Any) -> Float32[np.ndarray, "hit 3"]:
    """The positions in float32.

    Raises:
      UserError: they are of another shape or type, masked or not finite.
    """
    if isinstance(position, np.ma.MaskedArray):
        raise UserError(
            "hit positions are a masked array, whose mask would be lost; give the hits that are "
            "not masked, such as position[~mask]."
        )
    if hasattr(position, "position"):
        raise UserError("hit positions are expected, not an event; give event.position.")
    given = np.asarray(position)
    is_real = given.dtype.kind == "f" and given.dtype.itemsize in (4, 8)
    if given.ndim != 2 or given.shape[1] != 3 or not is_real:
        raise UserError(
            f"hit positions are an array of shape {given.shape} and type {given.dtype}; expected "
            "x, y and z in mm of each hit, shape (hits, 3), float32 or float64."
        )
    if not np.isfinite(given).all():
        raise UserError("a hit position is not finite; remove such hits before reconstruction.")
    # What overflows lies outside the detector in either type.
    limit = np.finfo(np.float32).max
    return np.clip(given, -limit, limit).astype(np.float32)
