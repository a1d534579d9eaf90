"""Writes a trained model as one file that needs only jax: hits in, track labels out.

The file holds the whole reconstruction as one program, from padded hits to labels, memberships and
a flag for overflow, with the weights and Voxel-Dynamics inside, for CPU and CUDA; it is compiled
where it is loaded. exported.py, beside this script, loads it in a few lines.

python experiments/export.py --read_tag=pu2 --num_hits=2000 --output=pu2.jaxexport
"""

from pathlib import Path

import command_line
from absl import flags

from hypertrack_jax.files import replace_file
from hypertrack_jax.reconstruction.export import PLATFORMS, export_reconstruction
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import ClusterTune, choices

flags.adopt_module_key_flags(command_line)

READ_TAG = flags.DEFINE_string("read_tag", None, "Name of the trained model.", required=True)
EPOCH = flags.DEFINE_integer("epoch", -1, "Step of the checkpoint; -1: the latest.", lower_bound=-1)
OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
NUM_HITS = flags.DEFINE_integer(
    "num_hits", 2000, "Hits of the largest event that the file has to take.", lower_bound=1
)
PLATFORM = flags.DEFINE_list("platforms", list(PLATFORMS), "Where the file can run.")
CLUSTER = flags.DEFINE_enum(
    "cluster", None, choices(ClusterTune, "cluster"), "What makes tracks; default: the tune's."
)
EDGE_THRESHOLD = flags.DEFINE_float(
    "edge_threshold", None, "Edges less probable than this are cut; default: the tune's.", 0.0, 1.0
)


def main() -> None:
    """Loads the model and writes the file."""
    model = Reconstructor.load(READ_TAG.value, command_line.workdir("models"), EPOCH.value)
    cluster = command_line.changed(model.tune.cluster, CLUSTER, EDGE_THRESHOLD)
    model = model.with_cluster(cluster)
    path = Path(OUTPUT.value)
    with replace_file(path) as file:
        file.write(export_reconstruction(model, NUM_HITS.value, PLATFORM.value))
    num_places = model.capacities(NUM_HITS.value).num_hits
    print(f"{path}: up to {num_places - 1} hits, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    command_line.run(main)
