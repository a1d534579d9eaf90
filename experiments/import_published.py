"""Makes a model from the files of the published PyTorch program.

python experiments/import_published.py --net=model_net_epoch_60.pt \
    --voxdyn=voxdyn_node2node_hyper_ncell_65536.pkl --save_tag=published

The model is a checkpoint in models/SAVE_TAG and, beside it, a Voxel-Dynamics file; all other
scripts and Reconstructor.load take it. No code in the files is run.
"""

from dataclasses import replace
from pathlib import Path

import command_line
from absl import flags

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.published_net import read_published_net, save_as_checkpoint
from hypertrack_jax.tunes.tune_5 import TUNE
from hypertrack_jax.voxdyn.published_voxdyn import read_published_voxdyn
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)

NET = flags.DEFINE_string("net", None, "Weights, model_net_epoch_N.pt.", required=True)
VOXDYN = flags.DEFINE_string(
    "voxdyn", None, "Graph constructor, voxdyn_node2node_NAME_ncell_V.pkl.", required=True
)
SAVE_TAG = flags.DEFINE_string("save_tag", None, "Name of the model to make.", required=True)


def main() -> None:
    """Reads both files and writes the model."""
    models = command_line.workdir("models")
    directory = models / SAVE_TAG.value
    if directory.exists():
        raise UserError(f"--save_tag={SAVE_TAG.value}: {directory} is there; choose another name.")
    net = read_published_net(Path(NET.value))
    voxdyn = read_published_voxdyn(Path(VOXDYN.value))
    path = voxdyn_path(models, voxdyn.node2node, voxdyn.num_cells)
    if path.exists():
        raise UserError(
            f"{path}: is there, and the model needs a Voxel-Dynamics file of this name; choose "
            "another --workdir."
        )
    tune = replace(
        TUNE, voxdyn=replace(TUNE.voxdyn, node2node=voxdyn.node2node, ncell=voxdyn.num_cells)
    )
    save_voxdyn(path, voxdyn)
    save_as_checkpoint(directory, tune, net, voxdyn)
    num_pairs = int(voxdyn.histogram.sum())
    print(f"{path}: {voxdyn.num_cells} cells, {num_pairs} connected pairs")
    print(f"{directory}: epoch {net.epoch}")


if __name__ == "__main__":
    command_line.run(main)
