"""Host side: Voxel-Dynamics files, written whole or not at all, and never unpickled."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.memory import require_memory
from hypertrack_jax.npz import ArrayType, NpzFormat, read_npz, write_npz
from hypertrack_jax.voxdyn.connectivity import MAX_ENTRIES, Rows
from hypertrack_jax.voxdyn.model import VoxelDynamics, count_threshold, make_voxdyn

FORMAT = NpzFormat(
    kind="a Voxel-Dynamics file",
    remedy="remove it and make it anew with experiments/pretrain_voxdyn.py",
    arrays={
        "node2node": ArrayType(np.str_, ()),
        "centroids": ArrayType(np.float32, ("cell", 3)),
        "space": ArrayType(np.float32, (2, 3)),
        "num_events": ArrayType(np.int64, ()),
        "objective": ArrayType(np.float64, ("iteration",)),
        "histogram": ArrayType(np.int64, ("count",)),
        "row_offsets": ArrayType(np.int32, ("cell_plus_1",)),
        "columns": ArrayType(np.int32, ("entry",)),
        "counts": ArrayType(np.uint16, ("entry",)),
    },
    version=2,
)
"""What the file of an estimator holds."""
_BYTES_PER_ENTRY = 10
"""Memory that reading takes for each entry of C: the entry, and its column once more."""
_BYTES_PER_CELL = 400
"""Memory of the search index, about."""
_FIELDS = ("node2node", "centroids", "space", "num_events", "objective", "histogram")


def voxdyn_path(directory: Path, node2node: str, ncell: int) -> Path:
    """Path of an estimator's file, such as `voxdyn_hyper_16384.npz`."""
    return directory / f"voxdyn_{node2node}_{ncell}.npz"


def save_voxdyn(path: Path, vd: VoxelDynamics) -> Path:
    """Writes an estimator, whole or not at all.

    The search index is not written but made on loading.

    Raises:
      UserError: the estimator was loaded with pruned rows.
      OSError: no space or no permission.
    """
    if vd.min_count > 1:
        raise UserError(
            f"{path}: this estimator holds only counts from {vd.min_count} on; load it with "
            "min_count=1 to write it."
        )
    fields: dict[str, Any] = {name: np.asarray(getattr(vd, name)) for name in _FIELDS}
    fields |= {name: np.asarray(part) for name, part in vd.rows._asdict().items()}
    return write_npz(path, FORMAT, fields)


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
      UserError: the file is damaged, of another format version, not what was asked for, or too
        large for this machine's memory.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; make it with experiments/pretrain_voxdyn.py "
            f"--node2node={node2node or 'hyper'} --ncell={ncell or 16384}."
        )
    fields = read_npz(path, FORMAT, [*_FIELDS, "row_offsets"])
    found = (str(fields["node2node"]), len(fields["centroids"]))
    for flag, value, asked in zip(("node2node", "ncell"), found, (node2node, ncell), strict=True):
        if asked is not None and value != asked:
            raise UserError(
                f"{path}: was fitted with {flag}={value}, but {flag}={asked} is asked for; "
                f"run experiments/pretrain_voxdyn.py --{flag}={asked}."
            )
    threshold = count_threshold(fields["histogram"], min_count)
    return make_voxdyn(
        found[0],
        fields["centroids"],
        _read_rows(path, fields["row_offsets"], found[1], threshold),
        space=fields["space"],
        num_events=int(fields["num_events"]),
        objective=fields["objective"],
        histogram=fields["histogram"],
        min_count=threshold,
    )


def _read_rows(path: Path, row_offsets: np.ndarray, num_cells: int, min_count: int) -> Rows:
    """C on the device, one array after the other: each passes through host memory once."""
    num_entries = int(row_offsets[-1]) if len(row_offsets) else 0
    require_memory(
        _BYTES_PER_ENTRY * num_entries + _BYTES_PER_CELL * num_cells,
        f"{path}: C with {num_entries} entries",
        "fewer cells",
    )
    counts = read_npz(path, FORMAT, ["counts"])["counts"]
    # Looked up without further checks: rows that do not fit together would lead it astray.
    is_sound = (
        len(row_offsets) == num_cells + 1
        and num_entries <= MAX_ENTRIES
        and row_offsets[0] == 0
        and num_entries == len(counts)
        and (np.diff(row_offsets) >= 0).all()
    )
    is_kept = counts >= min_count
    if is_sound and min_count > 1:
        row_offsets = np.append(np.int32(0), np.cumsum(is_kept, dtype=np.int32))[row_offsets]
        counts = counts[is_kept]
    device_counts = jax.device_put(counts)
    del counts
    columns = read_npz(path, FORMAT, ["columns"])["columns"]
    if not (
        is_sound
        and num_entries == len(columns)
        and (num_entries == 0 or (columns.min() >= 0 and columns.max() < num_cells))
    ):
        raise UserError(
            f"{path}: the rows of C do not fit together; remove the file and make it anew with "
            "experiments/pretrain_voxdyn.py."
        )
    if min_count > 1:
        columns = columns[is_kept]
    return Rows(jax.device_put(row_offsets), jax.device_put(columns), device_counts)
