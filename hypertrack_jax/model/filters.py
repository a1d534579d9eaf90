"""Host side: files of trained filters, written whole or not at all, and never unpickled.

A filter stands beside the Voxel-Dynamics file whose graphs it was trained on: every model on these
graphs may use it.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.counts import require_same_counts
from hypertrack_jax.model.parameters import by_name
from hypertrack_jax.networks.edge_filter import FilterWeights, init_filter
from hypertrack_jax.networks.features import LENGTH_SCALE
from hypertrack_jax.npz import ArrayType, NpzFormat, read_npz, write_npz
from hypertrack_jax.tunes.tune import FilterTune, Tune

_PAIRS, _COUNT = "num_pairs", "min_count"
FILTER_FILE = NpzFormat(
    kind="a filter",
    remedy="remove it and train it anew with experiments/train_filter.py",
    arrays={_PAIRS: ArrayType(np.int64, ()), _COUNT: ArrayType(np.int64, ())},
    others=ArrayType(np.float32),
    version=2,
)
"""A file of a filter holds what C it belongs to, and its arrays by name."""


def filter_path(directory: Path, tune: Tune) -> Path:
    """Path of the filter of a tune, such as `filter_eom_65536.npz`."""
    shape = "_shape" if tune.edge_filter.cells == "shape" else ""
    return directory / f"filter_{tune.voxdyn.node2node}_{tune.voxdyn.ncell}{shape}.npz"


def save_filter(path: Path, weights: FilterWeights, num_pairs: int, min_count: int) -> Path:
    """Writes a filter, whole or not at all.

    Args:
      path: the file.
      weights: the filter.
      num_pairs: pairs that the C of its training had counted, see `counts.count_pairs`.
      min_count: smallest count of C that made edges in its training.

    Raises:
      OSError: no space or no permission.
    """
    arrays: dict[str, Any] = {
        name: np.asarray(leaf, np.float32) for name, leaf in by_name(weights).items()
    }
    return write_npz(path, FILTER_FILE, arrays | {_PAIRS: num_pairs, _COUNT: min_count})


def load_filter(path: Path, tune: FilterTune, num_pairs: int, min_count: int) -> FilterWeights:
    """Reads what `save_filter` wrote.

    Args:
      path: the file.
      tune: what the model asks for.
      num_pairs: pairs that the C at hand has counted.
      min_count: smallest count of C that makes edges.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is damaged, of another width, or was trained on the graphs of another C.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such filter, but the model's graphs are filtered; train one with "
            "experiments/train_filter.py."
        )
    arrays = read_npz(path, FILTER_FILE)
    require_same_counts(int(arrays.pop(_PAIRS)), num_pairs, path)
    trained_count = int(arrays.pop(_COUNT))
    if trained_count != min_count:
        raise UserError(
            f"{path}: the filter was trained on graphs of min_count {trained_count}, but the model "
            f"asks for {min_count}; train one for it with experiments/train_filter.py."
        )
    return filter_of(arrays, tune, str(path))


def filter_of(arrays: dict[str, np.ndarray], tune: FilterTune, source: str) -> FilterWeights:
    """The filter whose arrays have these names.

    Raises:
      UserError: an array is missing, too many, or of another shape than the tune asks for.
    """
    shapes = jax.eval_shape(lambda: init_filter(jax.random.key(0), tune.width, tune.cells))
    wanted = by_name(shapes)
    # Filters of older files are of TrackML's detector.
    arrays = {"length_scale": np.array(LENGTH_SCALE, np.float32)} | arrays
    if {name: leaf.shape for name, leaf in wanted.items()} != {
        name: array.shape for name, array in arrays.items()
    }:
        raise UserError(
            f"{source}: the filter has not the width {tune.width} and the cells {tune.cells!r} "
            "of the tune, or is of another version; train one by experiments/train_filter.py."
        )
    leaves = jax.device_put([arrays[name] for name in wanted])
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
