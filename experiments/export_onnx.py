"""Writes a stage of a model in ONNX, for ACTS's edge classifiers or any other runtime.

python experiments/export_onnx.py --read_tag=pu2 --output=pu2.onnx
python experiments/export_onnx.py --read_tag=positions --stage=filter --output=filter.onnx

Inputs: node_features [hit, 3], x, y, z in mm (a filter that uses cells takes 15 more columns, the
clusters of the hits); edge_index [2, edge], both directions of every edge; edge_features [edge, 1],
the entry of C for the edge's cells, or the filter's logit for a network behind a filter. A network
without helix features has no third input. Output: logit [edge]. Any number of hits and edges is
allowed. The filter takes the whole candidate graph, self-loops included, and keeps the edges whose
logit is at least the `threshold` of the file's metadata.
"""

from pathlib import Path

import command_line
from absl import flags

from hypertrack_jax.files import replace_file
from hypertrack_jax.model.parameters import EDGE
from hypertrack_jax.reconstruction.edge_classifier import export_edge_classifier
from hypertrack_jax.reconstruction.filter_classifier import export_filter
from hypertrack_jax.reconstruction.reconstructor import Reconstructor

flags.adopt_module_key_flags(command_line)

READ_TAG = flags.DEFINE_string("read_tag", None, "Name of the trained model.", required=True)
EPOCH = flags.DEFINE_integer("epoch", -1, "Step of the checkpoint; -1: the latest.", lower_bound=-1)
STAGE = flags.DEFINE_enum("stage", "edge_predictor", ["edge_predictor", "filter"], "What to write.")
OUTPUT = flags.DEFINE_string("output", None, "File to write, .onnx.", required=True)


def main() -> None:
    """Loads the model and writes the file."""
    model = Reconstructor.load(READ_TAG.value, command_line.workdir("models"), EPOCH.value)
    if STAGE.value == "filter":
        content = export_filter(model.edge_filter)
    else:
        weights = model.params[EDGE], model.batch_stats
        content = export_edge_classifier(model.tune.network, *weights)
    path = Path(OUTPUT.value)
    with replace_file(path) as file:
        file.write(content)
    print(f"{path}: {len(content) / 1e6:.2f} MB")


if __name__ == "__main__":
    command_line.run(main)
