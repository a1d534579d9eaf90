"""Compares clusterers at several edge thresholds, on the edges of one trained model.

python experiments/compare_clusterers.py --read_tag=pu2 --rfactor=0.01 --edge_threshold=0.5,0.7,0.9
"""

import command_line
from absl import flags
from studies.clusterers import compare_clusterers, comparison_table
from tqdm import tqdm

from hypertrack_jax.files import replace_file
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.batches import EventSource, fixed_events
from hypertrack_jax.tunes.tune import ClusterTune, choices

flags.adopt_module_key_flags(command_line)

READ_TAG = flags.DEFINE_string("read_tag", None, "Name of the trained model.", required=True)
EPOCH = flags.DEFINE_integer("epoch", -1, "Step of the checkpoint; -1: the latest.", lower_bound=-1)
METHODS = flags.DEFINE_list(
    "cluster",
    ["cut", "dbscan", "hdbscan", "transformer"],
    f"Clusterers to compare, some of {', '.join(choices(ClusterTune, 'cluster'))}.",
)
EDGE_THRESHOLD = flags.DEFINE_list("edge_threshold", ["0.55"], "Edge thresholds to compare at.")
RFACTOR = flags.DEFINE_float("rfactor", 0.01, "Fraction of particles kept.")
EVENT_START = flags.DEFINE_list("event_start", ["8750"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["8849"], "Last events of the ranges.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the thinning.", lower_bound=0)


def main() -> None:
    """Prints a table, and writes it beside the other results of the model."""
    model = Reconstructor.load(READ_TAG.value, command_line.workdir("models"), EPOCH.value)
    source = EventSource(
        command_line.workdir("data"),
        command_line.event_range(EVENT_START, EVENT_END),
        RFACTOR.value,
        RFACTOR.value,
        -1,
        SEED.value,
    )
    events = tqdm(fixed_events(source), total=len(source.event_ids), unit="event")
    thresholds = command_line.floats(EDGE_THRESHOLD)
    table = comparison_table(list(compare_clusterers(model, events, METHODS.value, thresholds)))
    path = command_line.workdir("figs", READ_TAG.value, "clusterers.md")
    with replace_file(path) as file:
        file.write(table.encode())
    print(table, path, sep="\n\n")


if __name__ == "__main__":
    command_line.run(main)
