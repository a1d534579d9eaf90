"""Host side: the parts of a trained model from its files."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hypertrack_jax.model.counts import count_pairs, require_same_counts
from hypertrack_jax.model.filters import filter_path, load_filter
from hypertrack_jax.model.parameters import GNN_PHASE
from hypertrack_jax.model.weights import load_weights, shipped_names, shipped_path
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.compact import unpacked_voxdyn
from hypertrack_jax.voxdyn.model import VoxelDynamics, required_count
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

_LOG = logging.getLogger(__name__)


class ModelParts(NamedTuple):
    """What a `Reconstructor` is made of."""

    tune: Tune
    voxdyn: VoxelDynamics
    params: dict[str, Any]
    batch_stats: Any
    edge_filter: FilterWeights | None


def load_parts(
    model: str | Path, models: str | Path | None, step: int, voxdyn: str | Path | None
) -> ModelParts:
    """The parts of a model; arguments and errors are those of `Reconstructor.load`."""
    path, own = Path(models or ".") / model, Path(voxdyn) if voxdyn else None
    if not path.exists() and str(model) in shipped_names():
        return _from_weights(shipped_path(str(model)), Path(models or "models"), own)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such model; give a directory of checkpoints, a file of weights, or one of "
            f"the models that come with the package: {', '.join(shipped_names())}."
        )
    if path.is_file():
        return _from_weights(path, Path(models or path.parent), own)
    return _from_checkpoint(path, Path(models or path.parent), step, own)


def _from_weights(path: Path, models: Path, own: Path | None) -> ModelParts:
    weights = load_weights(path)
    if weights.voxdyn is not None and own is None:
        voxdyn = unpacked_voxdyn(weights.voxdyn, str(path))
        require_same_counts(weights.num_pairs, count_pairs(voxdyn), path)
    else:
        voxdyn = _load_voxdyn(models, weights.tune, weights.num_pairs, own)
    edge_filter = weights.edge_filter
    if edge_filter is None:
        edge_filter = load_tuned_filter(models, weights.tune, voxdyn)
    return ModelParts(weights.tune, voxdyn, weights.params, weights.batch_stats, edge_filter)


def _from_checkpoint(path: Path, models: Path, step: int, own: Path | None) -> ModelParts:
    # Orbax takes a second to import, and weights files do without it.
    from hypertrack_jax.model.checkpoint import Checkpoints

    with Checkpoints(path.absolute()) as checkpoints:
        saved = checkpoints.describe(step)
        parameters, phase = checkpoints.restore_parameters(saved.step, saved.tune)
    tune = saved.tune
    voxdyn = _load_voxdyn(models, tune, saved.num_pairs, own)
    if tune.cluster.cluster == "transformer" and phase == GNN_PHASE:
        _LOG.warning(
            "the transformer of %s has not been trained; tracks are made by cut", path.name
        )
        tune = replace(tune, cluster=replace(tune.cluster, cluster="cut"))
    return ModelParts(tune, voxdyn, *parameters, load_tuned_filter(models, tune, voxdyn))


def load_tuned_filter(models: Path, tune: Tune, voxdyn: VoxelDynamics) -> FilterWeights | None:
    """The filter that a tune asks for, from the directory of Voxel-Dynamics files.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is damaged, or does not belong to this tune and estimator.
    """
    if tune.edge_filter.filter == "none":
        return None
    min_count = required_count(voxdyn, tune.voxdyn.min_count)
    path = filter_path(models, tune)
    return load_filter(path, tune.edge_filter, count_pairs(voxdyn), min_count)


def _load_voxdyn(
    models: Path, tune: Tune, num_pairs: int | None, own: Path | None
) -> VoxelDynamics:
    wanted = tune.voxdyn
    path = own or voxdyn_path(models, wanted.node2node, wanted.ncell)
    voxdyn = load_voxdyn(path, wanted.node2node, wanted.ncell, wanted.min_count)
    require_same_counts(num_pairs, count_pairs(voxdyn), path)
    return voxdyn
