"""What a reconstruction loads: no optimiser and no training, and orbax for a checkpoint alone."""

import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
from toy import helix_event
from toy_graph import SMALL_NETWORK

from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.parameters import init_parameters
from hypertrack_jax.model.weights import Weights, save_weights
from hypertrack_jax.tunes.tune import ClusterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path

PROGRAM = """
import sys
import numpy as np
import hypertrack_jax as ht
model = ht.Reconstructor.load(sys.argv[1])
print(len(model(np.load(sys.argv[2])).hit_label))
names = {name.split(".")[0] for name in sys.modules}
print(sorted(names & {"optax", "orbax", "tensorboardX", "tqdm", "matplotlib", "acts", "sklearn"}))
print([name for name in sys.modules if name.startswith("hypertrack_jax.training")])
"""


def test_a_reconstruction_loads_neither_training_nor_optimiser_nor_orbax(tmp_path):
    cluster = ClusterTune(cluster="cut")
    network = replace(SMALL_NETWORK, num_heads=1)
    tune = Tune("small", VoxdynTune(ncell=64), network=network, cluster=cluster)
    events = [helix_event(1, num_particles=20)]
    voxdyn = fit_voxdyn(events, 64, "hyper", num_iterations=1)
    save_voxdyn(voxdyn_path(tmp_path, "hyper", 64), voxdyn)
    parameters = jax.jit(init_parameters, static_argnums=0)(tune, jax.random.key(0))
    save_weights(tmp_path / "w.npz", Weights(tune, *parameters, count_pairs(voxdyn)))
    np.save(tmp_path / "hits.npy", events[0].position)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "w.npz"), str(tmp_path / "hits.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(len(events[0].position)), "[]", "[]"]
