"""Trains the filter of a tune on sectors of events under --workdir/data: a file in models/.

The file lies beside the Voxel-Dynamics file that makes the filter's graphs. Ctrl-C keeps what has
been learnt, and the same command goes on from there.

python experiments/train_filter.py --param=dense --event_start=1000 --event_end=1999
"""

import command_line
import tune_flags
from absl import flags
from tqdm import tqdm

from hypertrack_jax.events.pileup import OWN_NOISE_RATIO
from hypertrack_jax.model.filters import filter_path
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.training.filter_training import FilterRun, train_filter
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(tune_flags)

EVENT_START = flags.DEFINE_list("event_start", ["2450"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["5899"], "Last events of the ranges.")
VALIDATION_START = flags.DEFINE_list(
    "validation_start", ["7500"], "First events of the ranges that decide the thresholds."
)
VALIDATION_END = flags.DEFINE_list("validation_end", ["7519"], "Last events of these ranges.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 400, "Updates in all.", lower_bound=1)
RFACTOR_START = flags.DEFINE_float(
    "rfactor_start", 1.0, "Smallest fraction of particles kept; each sector draws its own."
)
RFACTOR_END = flags.DEFINE_float("rfactor_end", 1.0, "Largest fraction of particles kept.")
SECTOR_HITS = flags.DEFINE_integer("sector_hits", 8000, "Hits of a sector, on average.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Decides weights, data order and sectors.", lower_bound=0)


def main() -> None:
    """Trains until --num_steps, and prints the thresholds."""
    tune = tune_flags.asked_tune()
    graphs, models = tune.voxdyn, command_line.workdir("models")
    of_graphs = graphs.node2node, graphs.ncell
    run = FilterRun(
        source=sectors(EVENT_START, EVENT_END),
        # All at the highest pile-up, where edges are most crowded.
        held_out=sectors(VALIDATION_START, VALIDATION_END)._replace(
            rfactor_start=RFACTOR_END.value
        ),
        num_steps=NUM_STEPS.value,
        path=filter_path(models, tune),
        log_directory=command_line.workdir("runs", filter_path(models, tune).stem),
    )
    voxdyn = load_voxdyn(voxdyn_path(models, *of_graphs), *of_graphs, graphs.min_count)
    weights = train_filter(run, tune, voxdyn, lambda steps: tqdm(steps, unit="step"))
    chosen = ", ".join(f"{value:.2f}" for value in weights.thresholds)
    print(f"{run.path}: thresholds of pairs, first and second round: {chosen}")


def sectors(start, end) -> EventSource:
    """Sectors of the events of a range, thinned as the flags ask."""
    return EventSource(
        command_line.workdir("data"),
        command_line.event_range(start, end),
        RFACTOR_START.value,
        RFACTOR_END.value,
        OWN_NOISE_RATIO,
        SEED.value,
        SECTOR_HITS.value,
    )


if __name__ == "__main__":
    command_line.run(main)
