"""Small models with fresh weights that find something."""

from dataclasses import replace

import jax
from toy import helix_event
from toy_graph import SMALL_NETWORK

from hypertrack_jax.clustering.transformer import TRANSFORMER
from hypertrack_jax.model.parameters import CLUSTER, init_parameters
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import ClusterTune, FilterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.model import VoxelDynamics

TUNE = Tune(
    "small",
    voxdyn=VoxdynTune(ncell=64),
    # Tokens of 11, which one head alone can take.
    network=replace(
        SMALL_NETWORK,
        node_features="cylindrical",
        edge_features="helix",
        num_heads=1,
        num_attention_blocks=1,
    ),
    cluster=ClusterTune(cluster="cut"),
)
"""Of the simplest model: no filter, and tracks that are components."""
FILTERED_TUNE = Tune(
    "small",
    voxdyn=VoxdynTune(ncell=64),
    edge_filter=FilterTune(filter="triplets", width=8),
    network=replace(
        SMALL_NETWORK,
        num_layers=1,
        latent_dim=8,
        node_features="cylindrical",
        edge_features="helix+filter",
        num_heads=1,
        num_attention_blocks=1,
    ),
    cluster=ClusterTune(cluster="cut"),
)
"""With a filter, and of one layer."""


def taking_all(params):
    """The parameters of a model, changed so that every hit of a micrograph belongs to it."""
    transformer = params[CLUSTER][TRANSFORMER]
    last = transformer["membership_2"]
    transformer = {**transformer, "membership_2": {**last, "bias": last["bias"] + 30}}
    return {**params, CLUSTER: {**params[CLUSTER], TRANSFORMER: transformer}}


def toy_voxdyn() -> VoxelDynamics:
    """The estimator of `FILTERED_TUNE`, fitted to toy events."""
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    return fit_voxdyn(events, FILTERED_TUNE.voxdyn.ncell, "hyper", num_iterations=2)


def filtered_model(tune: Tune, voxdyn: VoxelDynamics, weights: FilterWeights) -> Reconstructor:
    """A model with a filter and fresh networks."""
    parameters = jax.jit(init_parameters, static_argnums=0)(tune, jax.random.key(0))
    return Reconstructor(tune, voxdyn, *parameters, weights)
