"""Host side: the modules of a detector, and TrackML's list of them, `detectors.csv`."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.archives import Files, base_name, read_file
from hypertrack_jax.events.cells import Cells, FiredCells, cluster_cells
from hypertrack_jax.events.csv_table import read_table, require_finite, to_csv
from hypertrack_jax.files import replace_file

# This and `thickness_unit` follow from the real event that `kinematics` describes: with them the
# true crossings give both ends of 99 % of its clusters to the channel, along u and v.
BARREL_DRIFT = {8: 0.12, 13: 0.12, 17: 0.08}
"""Tangent of the Lorentz angle in TrackML's barrel volumes, where charge drifts along u."""

_COLUMNS = {
    **dict.fromkeys(("volume_id", "layer_id", "module_id"), np.int64),
    **dict.fromkeys(("cx", "cy", "cz"), np.float64),
    **dict.fromkeys((f"rot_{axis}{uv}" for uv in "uv" for axis in "xyz"), np.float64),
    **dict.fromkeys(("module_t", "module_minhu", "module_maxhu", "module_hv"), np.float64),
    **dict.fromkeys(("pitch_u", "pitch_v"), np.float64),
}
_FILE_NAME = re.compile(r"detectors\.csv(\.gz)?", re.IGNORECASE)
_NUMBER_BITS = (8, 12, 20)
_SHIFT = (48, 28, 0)


class Modules(NamedTuple):
    """The detector's modules, in the order of their geometry id."""

    geometry_id: Int64[np.ndarray, " module"]
    """Identifier in ACTS, without its lowest 8 bits, which are not used."""
    number: Int32[np.ndarray, "module 3"]
    """Volume, layer and module number."""
    center: Float64[np.ndarray, "module 3"]
    """Global position of the centre, in mm."""
    axes: Float64[np.ndarray, "module 2 3"]
    """Unit vectors u and v in the module's plane."""
    half_size: Float64[np.ndarray, "module 3"]
    """Half widths along u at the lower and at the upper end of v, and half length along v, mm."""
    pitch: Float64[np.ndarray, "module 2"]
    """Width of a channel along u and v, in mm; channel 0 begins at the lowest u and v."""
    thickness: Float64[np.ndarray, " module"]
    """Depth in which a particle leaves charge, in mm."""
    drift: Float64[np.ndarray, " module"]
    """Drift of charge along u over the depth it comes from: the tangent of the Lorentz angle."""


def module_frames(modules: Modules) -> Float32[np.ndarray, "module 3 3"]:
    """Matrices that turn a direction into channels, see `Cells.frame`."""
    u, v = modules.axes[:, 0], modules.axes[:, 1]
    normal = np.cross(u, v)
    channels = modules.thickness[:, None] / modules.pitch
    along_u = channels[:, :1] * (u - modules.drift[:, None] * normal)
    return np.stack([along_u, channels[:, 1:] * v, normal], axis=1).astype(np.float32)


def module_channels(modules: Modules) -> Int64[np.ndarray, "module 2"]:
    """Number of channels of each module along u and v, where it is widest."""
    half = np.stack([modules.half_size[:, :2].max(axis=1), modules.half_size[:, 2]], axis=1)
    return np.round(2 * half / modules.pitch).astype(np.int64)


def find_modules(modules: Modules, number: Int[np.ndarray, "hit 3"]) -> Int64[np.ndarray, " hit"]:
    """Index of the module of each volume, layer and module number; -1 for one not listed."""
    in_range = np.all((number >= 0) & (number < 2 ** np.array(_NUMBER_BITS)), axis=1)
    wanted = geometry_ids(np.where(in_range[:, None], number, 0))
    # Ids beyond the last one find the appended -1, which is no id.
    index = np.searchsorted(modules.geometry_id, wanted)
    is_listed = in_range & (np.append(modules.geometry_id, -1)[index] == wanted)
    return np.where(is_listed, index, -1)


def module_clusters(
    modules: Modules,
    fired: FiredCells,
    number: Int[np.ndarray, "hit 3"],
    hit_id: Int64[np.ndarray, " hit"],
    where: str,
) -> Cells:
    """The clusters of the hits of an event; frames are 0 for hits on modules that are not listed.

    Args:
      modules: the detector.
      fired: the cells.
      number: volume, layer and module of each hit.
      hit_id: number of each hit, for messages.
      where: the file of the hits, for messages.

    Raises:
      UserError: a hit with cells is on a module that is not listed.
    """
    module = find_modules(modules, number)
    is_unknown = module[fired.hit] < 0
    if is_unknown.any():
        hit = fired.hit[np.argmax(is_unknown)]
        name = "-".join(map(str, number[hit].tolist()))
        raise UserError(
            f"{where}: hit_id {hit_id[hit]} is on module {name}, which detectors.csv does not "
            "list; take the detectors.csv of these events."
        )
    frames = np.append(module_frames(modules), np.zeros((1, 3, 3), np.float32), axis=0)
    channels = np.append(module_channels(modules), [[0, 0]], axis=0)
    return cluster_cells(fired, frames[module], channels[module])


def geometry_ids(number: Int[np.ndarray, "module 3"]) -> Int64[np.ndarray, " module"]:
    """`Modules.geometry_id` of volume, layer and module number."""
    return (number.astype(np.int64) << np.array(_SHIFT)).sum(axis=1)


def find_detector(source: Path, files: Files, detector: Path | None) -> Modules | None:
    """The modules of a sample of TrackML's events.

    Args:
      source: the directory or zip of the events.
      files: what is in it.
      detector: the file that lists the modules; None looks for `detectors.csv` or `.csv.gz` in the
        source, else beside a zip.

    Returns:
      The modules; None where no file lists them.

    Raises:
      FileNotFoundError: `detector` is not there.
      UserError: there are two files, or one is damaged.
    """
    if detector is not None:
        if not detector.is_file():
            raise FileNotFoundError(f"{detector}: no such file; expected TrackML's detectors.csv.")
        return read_modules(str(detector), read_file(detector))
    found = {
        str(source / name): files[name] for name in files if _FILE_NAME.fullmatch(base_name(name))
    }
    if not found and source.is_file():
        beside = [
            path for path in source.absolute().parent.iterdir() if _FILE_NAME.fullmatch(path.name)
        ]
        found = {str(path): functools.partial(read_file, path) for path in beside}
    if len(found) > 1:
        raise UserError(
            f"{min(found)}: {max(found)} lists the modules, too; remove one of the two."
        )
    for where, read in found.items():
        return read_modules(where, read())
    return None


@functools.lru_cache(maxsize=2)
def read_modules(where: str, data: bytes) -> Modules:
    """Reads TrackML's `detectors.csv`. All events of a sample share one file, so it is cached.

    Args:
      where: name of the file, for messages.
      data: its content.

    Raises:
      UserError: the file has a missing column, a row of another length, a number that cannot be
        read, is not finite or is out of range, a module twice, or a module whose axes or sizes are
        not possible.
    """
    table = read_table(where, data, _COLUMNS)
    require_finite(table, where)
    number = _stacked(table, "volume_id", "layer_id", "module_id")
    if ((number < 0) | (number >= 2 ** np.array(_NUMBER_BITS))).any():
        raise UserError(f"{where}: a volume, layer or module number is out of range.")
    order = np.argsort(geometry_ids(number), kind="stable")
    table, number = table[order], number[order]
    axes = np.stack([_stacked(table, *(f"rot_{a}{uv}" for a in "xyz")) for uv in "uv"], axis=1)
    modules = Modules(
        geometry_id=geometry_ids(number),
        number=number.astype(np.int32),
        center=_stacked(table, "cx", "cy", "cz"),
        axes=axes,
        half_size=_stacked(table, "module_minhu", "module_maxhu", "module_hv"),
        pitch=_stacked(table, "pitch_u", "pitch_v"),
        thickness=table["module_t"] * thickness_unit(number),
        drift=drift_of(number),
    )
    is_bad = (np.abs(axes @ axes.transpose(0, 2, 1) - np.eye(2)) > 1e-3).any(axis=(1, 2))
    is_bad |= (modules.pitch <= 0).any(axis=1) | (modules.thickness <= 0)
    is_bad |= (modules.half_size < 0).any(axis=1)
    is_bad[1:] |= np.diff(modules.geometry_id) == 0
    if is_bad.any():
        name = "-".join(map(str, number[np.argmax(is_bad)].tolist()))
        raise UserError(
            f"{where}: module {name} occurs twice, or has axes that are not at right angles or a "
            "pitch or thickness that is not positive; fetch the file again."
        )
    return modules


def write_detector_csv(directory: str | Path, modules: Modules) -> Path:
    """Writes TrackML's `detectors.csv`, which `read_modules` reads back; returns its path.

    Raises:
      OSError: the file cannot be written.
    """
    normal = np.cross(modules.axes[:, 0], modules.axes[:, 1])
    axes = {"u": modules.axes[:, 0], "v": modules.axes[:, 1], "w": normal}
    columns = {
        **_split(modules.number, "volume_id", "layer_id", "module_id"),
        **_split(modules.center, "cx", "cy", "cz"),
        **{f"rot_{xyz}{uvw}": axes[uvw][:, i] for i, xyz in enumerate("xyz") for uvw in "uvw"},
        "module_t": modules.thickness / thickness_unit(modules.number),
        **_split(modules.half_size, "module_minhu", "module_maxhu", "module_hv"),
        **_split(modules.pitch, "pitch_u", "pitch_v"),
    }
    path = Path(directory) / "detectors.csv"
    with replace_file(path) as file:
        file.write(to_csv(columns))
    return path


def thickness_unit(number: Int[np.ndarray, "module 3"]) -> Float64[np.ndarray, " module"]:
    """Thickness over `module_t`: 2, since TrackML documents the half thickness; 1 in barrels."""
    return np.where(np.isin(number[:, 0], [*BARREL_DRIFT]), 1.0, 2.0)


def drift_of(number: Int[np.ndarray, "module 3"]) -> Float64[np.ndarray, " module"]:
    """`Modules.drift` of TrackML's modules, by their volume."""
    drift = np.zeros(len(number))
    for volume, tangent in BARREL_DRIFT.items():
        drift[number[:, 0] == volume] = tangent
    return drift


def _split(array: np.ndarray, *names: str) -> dict[str, np.ndarray]:
    return dict(zip(names, array.T, strict=True))


def _stacked(table: np.ndarray, *names: str) -> np.ndarray:
    return np.stack([table[name] for name in names], axis=1)
