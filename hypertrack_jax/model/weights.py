"""Host side: a trained model as one small file, without optimiser, and never unpickled.

The file holds the weights and the tune. It may hold the graph constructor, too, and is then all
that a reconstruction needs.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.filters import filter_of
from hypertrack_jax.model.parameters import Fitted, by_name, fitted, nested
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.npz import ArrayType, NpzFormat, read_npz, write_npz
from hypertrack_jax.tunes.tune import Tune, tune_from_json, tune_to_json
from hypertrack_jax.voxdyn.compact import ARRAYS, CompactVoxdyn

SHIPPED = Path(__file__).parents[1] / "weights"
"""Directory of the weights that come with the package."""
_TUNE, _PAIRS, _VOXDYN, _FILTER = "tune", "num_pairs", "voxdyn/", "filter/"
FORMAT = NpzFormat(
    kind="a file of weights",
    remedy="get it anew",
    arrays={_TUNE: ArrayType(np.uint8, ("byte",)), _PAIRS: ArrayType(np.int64, ())},
    others=ArrayType(np.float32),
    version=1,
    optional={_VOXDYN + name: kind for name, kind in ARRAYS.items()},
)
"""A file of weights holds the tune, the number of pairs counted, the parameters by name, and where
it is a whole model the graph constructor."""


class Weights(NamedTuple):
    """A trained model, with or without its graph constructor."""

    tune: Tune
    params: dict[str, Any]
    """Weights of the edge predictor (`edge`) and of the clusterer (`cluster`), float32."""
    batch_stats: Any
    """Running BatchNorm statistics."""
    num_pairs: int
    """Pairs that the C-matrix of the training had counted, each once."""
    voxdyn: CompactVoxdyn | None = None
    """The graph constructor; None where it is a file of its own."""
    edge_filter: FilterWeights | None = None
    """The filter; None without one, or where it is a file of its own."""


def shipped_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.npz"))


def shipped_without_cells() -> list[str]:
    """Those of them that need no cells."""
    tunes = {name: read_npz(shipped_path(name), FORMAT, [_TUNE])[_TUNE] for name in shipped_names()}
    return [
        name
        for name, text in tunes.items()
        if tune_from_json(text.tobytes().decode()).edge_filter.cells == "none"
    ]


def shipped_path(name: str) -> Path:
    """File of a model that comes with the package."""
    return SHIPPED / f"{name}.npz"


def save_weights(path: Path, weights: Weights) -> Path:
    """Writes weights, whole or not at all.

    Raises:
      OSError: no space or no permission.
    """
    arrays: dict[str, Any] = {
        name: np.asarray(leaf, np.float32) for name, leaf in by_name(_tree(weights)).items()
    }
    arrays[_TUNE] = np.frombuffer(tune_to_json(weights.tune).encode(), np.uint8)
    arrays[_PAIRS] = weights.num_pairs
    if weights.voxdyn is not None:
        arrays |= {_VOXDYN + name: part for name, part in weights.voxdyn._asdict().items()}
    if weights.edge_filter is not None:
        of_filter = by_name(weights.edge_filter)
        arrays |= {_FILTER + name: np.asarray(leaf) for name, leaf in of_filter.items()}
    return write_npz(path, FORMAT, arrays, compress=True)


def load_weights(path: Path) -> Weights:
    """Reads what `save_weights` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is damaged, or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights.")
    arrays = read_npz(path, FORMAT)
    tune, num_pairs, voxdyn = arrays.pop(_TUNE), int(arrays.pop(_PAIRS)), None
    if FORMAT.optional.keys() <= arrays.keys():
        voxdyn = CompactVoxdyn(**{name: arrays.pop(_VOXDYN + name) for name in ARRAYS})
    of_filter = {name: arrays.pop(name) for name in list(arrays) if name.startswith(_FILTER)}
    try:
        tune = tune_from_json(tune.tobytes().decode())
        tree = jax.device_put(nested(arrays))
        parameters = tree["params"], tree["batch_stats"]
        edge_filter = None
        if of_filter:
            of_filter = {name.removeprefix(_FILTER): part for name, part in of_filter.items()}
            edge_filter = filter_of(of_filter, tune.edge_filter, str(path))
        return Weights(tune, *parameters, num_pairs, voxdyn, edge_filter)
    # Text that is no JSON; a name that is missing, or both an array and a group of arrays.
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: damaged or not {FORMAT.kind}; {FORMAT.remedy}.") from error


def fit_weights(weights: Weights, into: dict[str, Any], name: str) -> Fitted:
    """A state's parts `into`, with the trained arrays where name and shape are the same.

    Args:
      weights: the trained model.
      into: nested dicts, in which `params` and `batch_stats` of a state stand by these names.
      name: what the model is called.
    """
    saved, wanted = by_name(_tree(weights)), by_name(into)
    found = {
        place: leaf
        for place, leaf in saved.items()
        if place in wanted and wanted[place].shape == leaf.shape
    }
    return fitted(f"the weights {name}", wanted, saved, found)


def _tree(weights: Weights) -> dict[str, Any]:
    return {"params": weights.params, "batch_stats": weights.batch_stats}
