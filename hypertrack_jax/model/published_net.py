"""Host side: weights of the published PyTorch program, read and written; torch is imported here.

The file is `model_net_epoch_N.pt` (https://github.com/mieskolainen/hypertrack), a dict of `epoch`,
`model` and `metrics`. Its `model` is the state_dict of the network of `tune-5`: inside each layer
of an MLP index 0 is the Linear, whose weight is [out, in], and 2 the BatchNorm.
"""

import importlib
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypertrack_jax.clustering.transformer import THRESHOLD, TRANSFORMER
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.files import replace_file
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.parameters import (
    CLUSTER,
    EDGE,
    FULL_PHASE,
    Parameters,
    by_name,
    init_parameters,
    nested,
)
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.tunes.tune_5 import TUNE
from hypertrack_jax.voxdyn.model import VoxelDynamics

_SOFT_THRESHOLD = "thr"
_ATTENTION = {
    "query": "W_q",
    "key": "W_k",
    "value": "W_v",
    "output": "W_o",
    "first": "MLP.0.0",
    "second": "MLP.1.0",
}
_NOT_READ = ("num_batches_tracked",)
"""Ends of names that only PyTorch's training needs."""


class PublishedNet(NamedTuple):
    """Trained weights of the published program."""

    epoch: int
    parameters: Parameters


def read_published_net(path: Path) -> PublishedNet:
    """Reads a file of weights by torch's `weights_only` loader; its metrics are not looked at.

    Raises:
      FileNotFoundError: there is no such file.
      MissingPackageError: torch is not installed.
      UserError: the file is damaged or something else, or its network is another one than that of
        `tune-5`.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected model_net_epoch_N.pt of the published program."
        )
    torch = _torch()
    # The metrics may hold NumPy's numbers and arrays. Stand-ins take their place.
    named = [(_Unread, name) for name in _NUMPY_NAMES]
    try:
        _require_checksums(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(named):
            # These warnings are about damaged bytes, which are refused below.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        epoch, state = int(content["epoch"]), content["model"]
        arrays = {str(name): value.detach().numpy() for name, value in state.items()}
        if epoch < 0:
            raise ValueError(f"epoch {epoch}")
    # All that torch raises for damaged bytes.
    except (
        *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
        *(EOFError, OSError, AssertionError, MemoryError, NotImplementedError),
        *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error),
    ) as error:
        raise UserError(
            f"{path}: damaged, or not weights of the published program ({_reason(error)}); get the "
            "file anew."
        ) from error
    return PublishedNet(epoch, published_parameters(arrays, str(path)))


def write_published_net(path: Path, tune: Tune, parameters: Parameters, epoch: int) -> Path:
    """Writes weights of a network of `tune-5` as the published program does, without metrics.

    Raises:
      MissingPackageError: torch is not installed.
      UserError: the network has other arrays than that of `tune-5`.
      OSError: no space or no permission.
    """
    torch = _torch()
    if tune.network != TUNE.network:
        raise UserError(
            f"the network of tune {tune.name} is not that of tune-5, which the published program "
            "has; export a model that was trained with tune-5."
        )
    state = {
        name: torch.from_numpy(np.array(array))
        for name, array in published_state(parameters).items()
    }
    with replace_file(path) as file:
        torch.save({"epoch": epoch, "model": state, "metrics": {}}, file)
    return path


def save_as_checkpoint(
    directory: Path, tune: Tune, net: PublishedNet, voxdyn: VoxelDynamics
) -> None:
    """Saves weights as a checkpoint that `Reconstructor.load` takes, and a training to begin with.

    Args:
      directory: directory of the tag.
      tune: `tune-5` with the cells of the graph constructor.
      net: the weights.
      voxdyn: the graph constructor.

    Raises:
      OSError: the checkpoint cannot be written.
    """
    # Orbax takes a second to import.
    from hypertrack_jax.model.checkpoint import Checkpoints

    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), net.parameters._asdict())
    state = {**arrays, "phase": jnp.asarray(FULL_PHASE, jnp.int32)}
    with Checkpoints(directory, is_writer=True) as checkpoints:
        checkpoints.save(net.epoch, state, tune, auc=0.0, num_pairs=count_pairs(voxdyn))


def published_parameters(state: Mapping[str, np.ndarray], where: str) -> Parameters:
    """The arrays of a published state_dict under our names and in our order of axes.

    Args:
      state: the arrays by their published names.
      where: the file to name.

    Returns:
      The arrays, of the types that they have.

    Raises:
      UserError: an array is missing, has no place here, or has another shape.
    """
    wanted = by_name(_parts(_expected()))
    places = {ours: theirs for ours, theirs in _places().items() if ours in wanted}
    given = {name for name in state if not name.endswith(_NOT_READ)}
    for problem, names in (
        ("lacks", set(places.values()) - given),
        ("has the unknown", given - set(places.values())),
    ):
        if names:
            raise UserError(
                f"{where}: {problem} {_shown(min(names, key=str))}; expected the weights of "
                "the published network of tune-5."
            )
    arrays = {}
    for ours, theirs in places.items():
        array = state[theirs]
        array = array.reshape(()) if theirs == _SOFT_THRESHOLD and array.size == 1 else array
        array = array.T if ours.endswith("/kernel") else array
        if array.shape != wanted[ours].shape:
            raise UserError(
                f"{where}: {theirs} has the shape {state[theirs].shape}, which makes a network of "
                "another width than that of tune-5; choose a file that was trained with tune-5."
            )
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"{where}: {theirs} holds values that are no finite numbers.")
        arrays[ours] = _logit(array) if theirs == _SOFT_THRESHOLD else array
    found = nested(arrays)
    return Parameters(found["params"], found["batch_stats"])


def published_state(parameters: Parameters) -> dict[str, np.ndarray]:
    """The state_dict of these parameters; `published_parameters` is its inverse.

    The numbers of batches that BatchNorms have seen are 0: PyTorch uses them in no computation of
    this network.
    """
    state: dict[str, np.ndarray] = {}
    places = _places()
    for ours, leaf in by_name(_parts(parameters)).items():
        array, theirs = np.asarray(leaf), places[ours]
        if theirs == _SOFT_THRESHOLD:
            array = 1 / (1 + np.exp(-array.reshape(1)))
        state[theirs] = array.T if ours.endswith("/kernel") else array
        if theirs.endswith("running_var"):
            count = theirs.removesuffix("running_var") + _NOT_READ[0]
            state[count] = np.zeros((), np.int64)
    return state


class _Unread:
    """Stands in for an object that is not needed."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NUMPY_NAMES = [
    *("numpy.dtype", "numpy.ndarray"),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
]


def _places() -> dict[str, str]:
    """Published name of each array."""
    places: dict[str, str] = {f"params/{CLUSTER}/{THRESHOLD}": _SOFT_THRESHOLD}

    def linear(ours: str, theirs: str) -> None:
        places[f"params/{ours}/kernel"] = f"{theirs}.weight"
        places[f"params/{ours}/bias"] = f"{theirs}.bias"

    def norm(ours: str, theirs: str) -> None:
        places[f"params/{ours}/scale"] = f"{theirs}.weight"
        places[f"params/{ours}/bias"] = f"{theirs}.bias"

    def layer(ours: str, theirs: str) -> None:
        linear(f"{EDGE}/{ours}", f"{theirs}.0")
        norm(f"{EDGE}/{ours}/norm", f"{theirs}.2")
        places[f"batch_stats/{ours}/norm/mean"] = f"{theirs}.2.running_mean"
        places[f"batch_stats/{ours}/norm/var"] = f"{theirs}.2.running_var"

    def attention(ours: str, theirs: str) -> None:
        for name, their_name in _ATTENTION.items():
            linear(f"{ours}/{name}", f"{theirs}.{their_name}")
        norm(f"{ours}/attention_norm", f"{theirs}.ln0")
        norm(f"{ours}/norm", f"{theirs}.ln1")

    for i in range(TUNE.network.num_layers):
        layer(f"layers_{i}/edge_first", f"conv_gnn_edx.{i}.nn.0")
        layer(f"layers_{i}/edge_second", f"conv_gnn_edx.{i}.nn.1")
        for k in range(2):
            layer(f"layers_{i}/latent/layers_{k}", f"conv_gnn_edx.{i}.nn_final.{k}")
    for k in range(2):
        layer(f"fusion/layers_{k}", f"mlp_fusion_edx.{k}")
        layer(f"edge_mlp/layers_{k}", f"mlp_2pt_edx.{k}")
    linear(f"{EDGE}/edge_mlp", "mlp_2pt_edx.2")
    ours, theirs = f"{CLUSTER}/{TRANSFORMER}", "transformer_ccx"
    linear(f"{ours}/encoder_0", f"{theirs}.MLP_E.0.0")
    linear(f"{ours}/encoder_1", f"{theirs}.MLP_E.1")
    attention(f"{ours}/of_pivots", f"{theirs}.mab_D")
    for i in range(TUNE.network.num_attention_blocks):
        attention(f"{ours}/of_hits_{i}", f"{theirs}.sab_stack_D.{i}.0.mab")
    for k, name in enumerate(("MLP_m.0.0", "MLP_m.1.0", "MLP_m.2")):
        linear(f"{ours}/membership_{k}", f"{theirs}.{name}")
    return places


def _parts(parameters: Parameters) -> dict[str, Any]:
    return {"params": parameters.params, "batch_stats": parameters.batch_stats}


def _expected() -> Parameters:
    """Shapes of the arrays of `tune-5`."""
    return jax.eval_shape(partial(init_parameters, TUNE), jax.random.key(0))


def _logit(probability: np.ndarray) -> np.ndarray:
    inside = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)), probability.dtype)


def _require_checksums(path: Path) -> None:
    """Raises `BadZipFile` for a changed member; torch does not look at the checksums."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed:
            raise zipfile.BadZipFile(f"the checksum of {_shown(changed)} is wrong")


def _shown(name: Any) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(name))[:60]


def _reason(error: BaseException) -> str:
    """The first sentence of a message, without advice to switch off what makes loading safe."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds other objects than weights"
    return " ".join(str(error).split())[:80].rstrip(".") or type(error).__name__


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise MissingPackageError(
            "the files of the published program need torch; install it with "
            "pip install 'hypertrack-jax[published]'."
        ) from error
