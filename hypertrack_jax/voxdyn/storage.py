"""Host side: Voxel-Dynamics files, written whole or not at all, and never unpickled."""

import zipfile
from pathlib import Path

import numpy as np

from hypertrack_jax.events.store import replace_file
from hypertrack_jax.memory import require_memory
from hypertrack_jax.voxdyn.connectivity import Rows, halve_rows, prune_rows
from hypertrack_jax.voxdyn.model import VoxelDynamics, count_threshold, make_voxdyn

FORMAT_VERSION = 2
_BYTES_PER_ENTRY = 24
"""Memory that mirroring takes for each entry of the upper half: the half twice, and the whole."""
_BYTES_PER_CELL = 400
"""Memory of the search index, about."""
_FIELDS = ("node2node", "centroids", "space", "num_events", "objective", "histogram")


def voxdyn_path(directory: Path, node2node: str, ncell: int) -> Path:
    """Path of an estimator's file, such as `voxdyn_hyper_16384.npz`."""
    return directory / f"voxdyn_{node2node}_{ncell}.npz"


def save_voxdyn(path: Path, vd: VoxelDynamics) -> Path:
    """Writes an estimator, whole or not at all.

    The upper half of C is written; the other half and the search index are made on loading.

    Raises:
      ValueError: the estimator was loaded with pruned rows.
      OSError: no space or no permission.
    """
    if vd.min_count > 1:
        raise ValueError(
            f"{path}: this estimator holds only counts from {vd.min_count} on; load it with "
            "min_count=1 to write it."
        )
    with replace_file(path) as file:
        np.savez(
            file,
            format_version=FORMAT_VERSION,
            **{name: np.asarray(getattr(vd, name)) for name in _FIELDS},
            **halve_rows(vd.rows)._asdict(),
        )
    return path


def load_voxdyn(
    path: Path,
    node2node: str | None = None,
    ncell: int | None = None,
    min_count: float | int = 1,
) -> VoxelDynamics:
    """Reads an estimator that `save_voxdyn` wrote.

    Args:
      path: the file.
      node2node: the topology it must have been fitted with; None takes any.
      ncell: the number of cells it must have; None takes any.
      min_count: smaller counts will never be asked for and are left out, which saves memory and
        time; a number of pairs, or a quantile of them as `count_threshold` takes it.

    Returns:
      The estimator.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, of another format version, not what was asked for, or too
        large for this machine's memory.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; make it with experiments/pretrain_voxdyn.py "
            f"--node2node={node2node or 'hyper'} --ncell={ncell or 16384}."
        )
    fields = _read_fields(path)
    found = (str(fields["node2node"]), len(fields["centroids"]))
    for flag, value, asked in zip(("node2node", "ncell"), found, (node2node, ncell), strict=True):
        if asked is not None and value != asked:
            raise ValueError(
                f"{path}: was fitted with --{flag}={value}, but --{flag}={asked} is asked for; "
                f"run experiments/pretrain_voxdyn.py --{flag}={asked}."
            )
    upper = Rows(*(fields[name] for name in Rows._fields))
    _check_rows(path, upper, found[1])
    threshold = count_threshold(fields["histogram"], min_count)
    if threshold > 1:
        upper = prune_rows(upper, threshold)
    require_memory(
        _BYTES_PER_ENTRY * len(upper.columns) + _BYTES_PER_CELL * found[1],
        f"{path}: C with {len(upper.columns)} pairs of cells",
        "a larger min_count",
    )
    return make_voxdyn(
        found[0],
        fields["centroids"],
        upper,
        space=fields["space"],
        num_events=int(fields["num_events"]),
        objective=fields["objective"],
        histogram=fields["histogram"],
        min_count=threshold,
    )


def _read_fields(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file."""
    try:
        # np.load leaves a file that it opened itself open when the file is damaged.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            version = int(file["format_version"])
            missing = sorted({*_FIELDS, *Rows._fields} - set(file.files))
            if version == FORMAT_VERSION and not missing:
                return {name: file[name] for name in (*_FIELDS, *Rows._fields)}
    # What np.load raises for a zip cut short, a flipped bit, an empty file, another kind of file.
    except (zipfile.BadZipFile, EOFError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(
            f"{path}: damaged or not a Voxel-Dynamics file ({error}); remove it and make it anew "
            "with experiments/pretrain_voxdyn.py."
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version}, but this program reads version {FORMAT_VERSION}; "
            "make it anew with experiments/pretrain_voxdyn.py."
        )
    raise ValueError(
        f"{path}: lacks {', '.join(missing)}; make it anew with experiments/pretrain_voxdyn.py."
    )


def _check_rows(path: Path, rows: Rows, num_cells: int) -> None:
    """Refuses rows that would lead a look-up astray: they are read without further checks."""
    offsets, columns = rows.row_offsets, rows.columns
    is_sound = (
        len(offsets) == num_cells + 1
        and offsets[0] == 0
        and offsets[-1] == len(columns) == len(rows.counts)
        and (np.diff(offsets) >= 0).all()
        and (len(columns) == 0 or (columns.min() >= 0 and columns.max() < num_cells))
    )
    if not is_sound:
        raise ValueError(
            f"{path}: the rows of C do not fit together; remove the file and make it anew with "
            "experiments/pretrain_voxdyn.py."
        )
