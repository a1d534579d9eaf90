"""What the tests of training share: stored toy events, a graph constructor and a small tune."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest
from toy import helix_event
from toy_graph import SMALL_NETWORK

from hypertrack_jax.events.store import save_event
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.tunes.tune import (
    ClusterTune,
    LossTune,
    OptimizerTune,
    Tune,
    VoxdynTune,
    tune_to_json,
)
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.model import VoxelDynamics
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path

NUM_EVENTS = 4


@pytest.fixture
def optax_promotion():
    """Allows implicit promotion: optax's Adam raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def small_tune() -> Tune:
    """Of the particles of an event two enter the contrastive loss.

    Seeds and clusters are found with the edges of an untrained network, too.
    """
    return Tune(
        "small",
        voxdyn=VoxdynTune(ncell=64),
        network=replace(
            SMALL_NETWORK,
            num_layers=1,
            node_features="cylindrical",
            edge_features="helix",
            num_heads=1,
            num_attention_blocks=1,
        ),
        cluster=ClusterTune(
            edge_threshold=0.5, pivot_threshold=0.3, seed_strategy="largest_3d", num_draws=1
        ),
        loss=LossTune(contrastive_max_particles=2),
        optimizer=OptimizerTune(learning_rate=1e-2, period=1000),
    )


@pytest.fixture(scope="session")
def event_directory(tmp_path_factory) -> Path:
    """A directory of `NUM_EVENTS` events, numbered from 1; two at a time fit into one bucket."""
    directory = tmp_path_factory.mktemp("events")
    for number in range(1, NUM_EVENTS + 1):
        save_event(directory, helix_event(0, num_particles=8, event_id=number))
    return directory


@pytest.fixture(scope="session")
def voxdyn(small_tune) -> VoxelDynamics:
    """Cells fitted to more events of the same kind."""
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(5)]
    return fit_voxdyn(events, small_tune.voxdyn.ncell, "hyper", num_iterations=3)


@pytest.fixture
def source(event_directory) -> EventSource:
    """The stored events, each thinned to six or more of its eight particles: one bucket."""
    return EventSource(event_directory, range(1, NUM_EVENTS + 1), 0.75, 1.0, -1, seed=3)


@pytest.fixture
def workdir(tmp_path, event_directory, small_tune, voxdyn):
    """What the command needs: events, the graph constructor and the tune, as a file."""
    (tmp_path / "data").symlink_to(event_directory)
    save_voxdyn(voxdyn_path(tmp_path / "models", "hyper", small_tune.voxdyn.ncell), voxdyn)
    (tmp_path / "tiny.py").write_text(
        "from hypertrack_jax.tunes.tune import tune_from_json\n\n"
        f"TUNE = tune_from_json({tune_to_json(small_tune)!r})\n"
    )
    return tmp_path
