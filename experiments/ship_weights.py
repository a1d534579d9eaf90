"""Writes a trained model as one small file, without its optimiser.

python experiments/ship_weights.py --read_tag=pu2 --output=pu2.npz --voxdyn=voxdyn_hyper_16384.npz
"""

from dataclasses import replace
from pathlib import Path

import command_line
from absl import flags

from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.weights import Weights, save_weights
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.load import load_tune
from hypertrack_jax.voxdyn.compact import compact_voxdyn

flags.adopt_module_key_flags(command_line)

READ_TAG = flags.DEFINE_string("read_tag", None, "Name of the trained model.", required=True)
EPOCH = flags.DEFINE_integer("epoch", -1, "Step of the checkpoint; -1: the latest.", lower_bound=-1)
PARAM = flags.DEFINE_string(
    "param",
    None,
    "Tune to take min_count and the clusterer's settings from; default: the model's own.",
)
VOXDYN = flags.DEFINE_string(
    "voxdyn",
    None,
    "Voxel-Dynamics file to include, without counts below the tune's min_count; default: the "
    "output holds the weights alone.",
)
OUTPUT = flags.DEFINE_string("output", None, "File to write, .npz.", required=True)


def main() -> None:
    """Loads the model, which needs its Voxel-Dynamics file, and writes what is asked for."""
    models = command_line.workdir("models")
    model = Reconstructor.load(READ_TAG.value, models, EPOCH.value, voxdyn=VOXDYN.value)
    tune = model.tune
    if PARAM.value:
        asked = load_tune(PARAM.value)
        voxdyn = replace(tune.voxdyn, min_count=asked.voxdyn.min_count)
        tune = replace(tune, voxdyn=voxdyn, cluster=asked.cluster)
    compact = compact_voxdyn(model.voxdyn, tune.voxdyn.min_count) if VOXDYN.value else None
    parameters, num_pairs = (model.params, model.batch_stats), count_pairs(model.voxdyn)
    weights = Weights(tune, *parameters, num_pairs, compact, model.edge_filter)
    path = save_weights(Path(OUTPUT.value), weights)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    command_line.run(main)
