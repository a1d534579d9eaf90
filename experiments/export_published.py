"""Writes a model trained with tune-5 as a file that the published PyTorch program reads.

python experiments/export_published.py --read_tag=mine --output=model_net_epoch_60.pt

The file is written by torch.save: a dict of `epoch`, `model` (the state_dict) and empty `metrics`.
"""

from pathlib import Path

import command_line
from absl import flags

from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.model.published_net import write_published_net

flags.adopt_module_key_flags(command_line)

READ_TAG = flags.DEFINE_string("read_tag", None, "Name of the trained model.", required=True)
EPOCH = flags.DEFINE_integer("epoch", -1, "Step of the checkpoint; -1: the latest.", lower_bound=-1)
OUTPUT = flags.DEFINE_string("output", None, "File to write, .pt.", required=True)


def main() -> None:
    """Reads the checkpoint and writes the file."""
    with Checkpoints(command_line.workdir("models", READ_TAG.value)) as checkpoints:
        saved = checkpoints.describe(EPOCH.value)
        parameters, _ = checkpoints.restore_parameters(saved.step, saved.tune)
    path = write_published_net(Path(OUTPUT.value), saved.tune, parameters, saved.step)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    command_line.run(main)
