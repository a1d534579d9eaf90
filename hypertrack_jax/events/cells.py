"""Host side: the module cells that fired, and the shape of the cluster of each hit."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.csv_table import read_table, require_finite

_COLUMNS = {"hit_id": np.int64, "ch0": np.int64, "ch1": np.int64, "value": np.float32}
_ACTS_COLUMNS = {
    **{"measurement_id": np.int64, "hit_id": np.int64},
    **{"channel0": np.int64, "channel1": np.int64, "value": np.float32},
}


class FiredCells(NamedTuple):
    """The cells of an event that fired, one entry per cell."""

    hit: Int64[np.ndarray, " cell"]
    """Index of the hit whose cluster the cell belongs to."""
    channel: Int64[np.ndarray, "cell 2"]
    """Channels along u and v of the module, from 0."""
    value: Float32[np.ndarray, " cell"]
    """Charge, in units of the readout; strips of TrackML have 1."""


class Cells(NamedTuple):
    """The cluster of cells of each hit, and its module; one entry per hit."""

    extent: Int32[np.ndarray, "hit 2"]
    """Channels from the first to the last cell along u and v; 0 for a hit without cells."""
    num_cells: Int32[np.ndarray, " hit"]
    """Number of cells."""
    charge: Float32[np.ndarray, " hit"]
    """Sum of the values of the cells."""
    slant: Float32[np.ndarray, " hit"]
    """Correlation of the cells' channels along u and v, from -1 to 1; 0 where either is constant.
    Its sign is the sign of the product of the slopes along u and v."""
    is_cut: Bool[np.ndarray, "hit 2"]
    """Whether the cluster reaches its module's edge along u and v, so that it may be cut off."""
    frame: Float32[np.ndarray, "hit 3 3"]
    """A particle of direction d crosses (frame[0] @ d) / (frame[2] @ d) channels along u of the
    module, and (frame[1] @ d) / (frame[2] @ d) along v. frame[2] is the unit normal."""


def no_cells() -> Cells:
    """The clusters of no hits."""
    return Cells(
        extent=np.zeros((0, 2), np.int32),
        num_cells=np.zeros(0, np.int32),
        charge=np.zeros(0, np.float32),
        slant=np.zeros(0, np.float32),
        is_cut=np.zeros((0, 2), np.bool_),
        frame=np.zeros((0, 3, 3), np.float32),
    )


def take_cells(cells: Cells | None, chosen: np.ndarray) -> Cells | None:
    """The clusters of some hits, by a mask or by indices."""
    return None if cells is None else Cells(*(field[chosen] for field in cells))


def cluster_cells(
    fired: FiredCells,
    frame: Float32[np.ndarray, "hit 3 3"],
    num_channels: Int64[np.ndarray, "hit 2"],
) -> Cells:
    """The shape of the cluster of each hit.

    Args:
      fired: the cells, in any order; hits need not have any.
      frame: frame of each hit, see `Cells.frame`.
      num_channels: number of channels of each hit's module along u and v.
    """
    num_hits = len(frame)
    num_cells = np.bincount(fired.hit, minlength=num_hits)
    order = np.argsort(fired.hit, kind="stable")
    hit, channel = fired.hit[order], fired.channel[order]
    has_cells = num_cells > 0
    extent, is_cut = np.zeros((num_hits, 2), np.int64), np.zeros((num_hits, 2), np.bool_)
    first = np.flatnonzero(np.diff(hit, prepend=-1))
    if len(first):
        lowest, highest = (of.reduceat(channel, first) for of in (np.minimum, np.maximum))
        extent[has_cells] = highest - lowest + 1
        is_cut[has_cells] = (lowest == 0) | (highest == num_channels[has_cells] - 1)
        # Counted from the lowest channel: sums of large channel numbers would round in float64.
        channel = channel - lowest[np.cumsum(np.diff(hit, prepend=hit[0]) != 0)]
    return Cells(
        extent=extent.astype(np.int32),
        num_cells=num_cells.astype(np.int32),
        charge=np.bincount(fired.hit, fired.value, num_hits).astype(np.float32),
        slant=_correlation(hit, channel.astype(np.float64), num_cells).astype(np.float32),
        is_cut=is_cut,
        frame=frame,
    )


def read_cells(where: str, data: bytes, hit_id: Int64[np.ndarray, " hit"]) -> FiredCells:
    """Reads TrackML's cells of an event.

    A cell that the file lists twice for one hit, for example because two particles fired it,
    becomes one cell with the sum of both values.

    Args:
      where: name of the file, for messages.
      data: its content.
      hit_id: the hits of the event, each once; any of them may have no cells.

    Raises:
      UserError: the file has a missing column, a row of another length, a number that cannot be
        read or is not finite, a negative channel, or a cell of another hit.
    """
    return _fired(where, read_table(where, data, _COLUMNS), hit_id)


def read_acts_cells(where: str, data: bytes, hit_id: Int64[np.ndarray, " hit"]) -> FiredCells:
    """Reads ACTS's cells of an event, as `read_cells` reads TrackML's.

    A cell names its measurement, or in older files and those of traccc its hit.

    Raises:
      UserError: as `read_cells`.
    """
    optional = ("measurement_id", "hit_id")
    table = read_table(where, data, _ACTS_COLUMNS, optional, "ACTS's csv format")
    names = [name for name in optional if name in (table.dtype.names or ())]
    if not names:
        raise UserError(
            f"{where}: has neither the column measurement_id nor hit_id; expected a file of ACTS's "
            "csv format."
        )
    return _fired(where, table[[names[0], "channel0", "channel1", "value"]], hit_id)


def cell_columns(fired: FiredCells, hit_id: Int64[np.ndarray, " hit"]) -> dict[str, np.ndarray]:
    """The columns of TrackML's cells, which `read_cells` reads back."""
    return {
        "hit_id": hit_id[fired.hit],
        "ch0": fired.channel[:, 0],
        "ch1": fired.channel[:, 1],
        "value": fired.value,
    }


def _fired(where: str, table: np.ndarray, hit_id: Int64[np.ndarray, " hit"]) -> FiredCells:
    """The cells of a table whose columns are the hit, both channels and the value."""
    require_finite(table, where)
    name, first, second, _ = list(table.dtype.names or ())
    ids, channel = table[name], np.stack([table[first], table[second]], axis=1)
    is_bad = ((channel < 0) | (channel >= 2**31)).any(axis=1)
    if is_bad.any():
        row = np.argmax(is_bad)
        raise UserError(
            f"{where}: a cell of {name} {ids[row]} has the channels {channel[row, 0]}, "
            f"{channel[row, 1]}; expected numbers from 0 to 2^31 - 1: fetch the file again."
        )
    order = np.argsort(hit_id)
    hit = order[np.minimum(np.searchsorted(hit_id, ids, sorter=order), len(hit_id) - 1)]
    is_unknown = hit_id[hit] != ids
    if is_unknown.any():
        raise UserError(
            f"{where}: {name} {ids[np.argmax(is_unknown)]} is not among the hits; it holds the "
            "cells of another event: fetch both files again."
        )
    return _each_once(FiredCells(hit, channel, table["value"].copy()))


def _each_once(fired: FiredCells) -> FiredCells:
    """The cells; entries of one hit with the same channels are merged."""
    order = np.lexsort((*fired.channel.T, fired.hit))
    hit, channel = fired.hit[order], fired.channel[order]
    is_first = np.append(True, (np.diff(hit) != 0) | np.diff(channel, axis=0).any(axis=1))
    first = np.flatnonzero(is_first[: len(hit)])
    if len(first) == len(hit):
        return fired
    value = np.add.reduceat(fired.value[order], first)
    return FiredCells(hit[first], channel[first], value)


def _correlation(hit: np.ndarray, channel: np.ndarray, num_cells: np.ndarray) -> np.ndarray:
    """Correlation of the two columns of `channel` within each hit."""

    def mean(values):
        return np.bincount(hit, values, len(num_cells)) / np.maximum(num_cells, 1)

    u, v = (column - mean(column)[hit] for column in channel.T)
    spread = mean(u * u) * mean(v * v)
    return np.divide(mean(u * v), np.sqrt(spread), out=np.zeros(len(spread)), where=spread > 1e-12)
