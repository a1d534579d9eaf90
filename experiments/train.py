"""Trains on events under --workdir/data: the GNN edge predictor, then the clusterer with it.

python experiments/train.py --param=helix --rfactor_start=0.01 --rfactor_end=0.01 --save_tag=pu2
python experiments/train.py --param=helix --save_tag=pu20 --transfer_tag=pu2 --rfactor_end=0.1
"""

import command_line
import processes
import tune_flags
from absl import flags

from hypertrack_jax.reconstruction.load import load_tuned_filter
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.training.loop import train
from hypertrack_jax.training.run import DTYPES, TrainingRun
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(tune_flags)

SAVE_TAG = flags.DEFINE_string("save_tag", None, "Name of the model.", required=True)
TRANSFER_TAG = flags.DEFINE_string(
    "transfer_tag",
    None,
    "Begin with the weights of this model, or of one that comes with the package, as far as they "
    "fit; of no effect once --save_tag has checkpoints of its own.",
)
EPOCH = flags.DEFINE_integer(
    "epoch", -1, "-1: go on from the latest checkpoint, if any; 0: begin anew; N: from step N.", -1
)
SOFT_RESET = flags.DEFINE_integer(
    "soft_reset",
    0,
    "1: go on with the weights of the checkpoint, but with a fresh optimiser and schedule, and in "
    "phase 1. Steps count on, so raise --num_steps. Give it for one start: each start resets anew.",
    0,
    1,
)
PHASE = flags.DEFINE_enum(
    "phase", "auto", ["auto", "1", "2"], "1: the GNN alone; 2: both; auto: 2 above --auc_threshold."
)
RFACTOR_START = flags.DEFINE_float(
    "rfactor_start", 0.01, "Smallest fraction of particles kept; each event draws its own."
)
RFACTOR_END = flags.DEFINE_float("rfactor_end", 0.01, "Largest fraction of particles kept.")
NOISE_RATIO = flags.DEFINE_string(
    "noise_ratio", "-1", "Noise hits over all hits; -1: as in the event; none: no noise."
)
EVENT_START = flags.DEFINE_list("event_start", ["2450", "5950"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["5899", "7499"], "Last events of the ranges.")
VALIDATE = flags.DEFINE_integer("validate", 0, "1: measure the AUC of validation events.", 0, 1)
VALIDATION_START = flags.DEFINE_list("validation_start", ["7500"], "First validation events.")
VALIDATION_END = flags.DEFINE_list("validation_end", ["7549"], "Last validation events.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Events per update.", lower_bound=1)
FP_DTYPE = flags.DEFINE_enum(
    "fp_dtype", "float32", DTYPES, "Type of arrays over hits and edges; weights are float32."
)
NUM_STEPS = flags.DEFINE_integer("num_steps", 10_000, "Updates in all.", lower_bound=1)
SAVE_PERIOD = flags.DEFINE_float("save_period", 15.0, "Minutes between checkpoints.", lower_bound=0)
SECTOR_HITS = flags.DEFINE_integer(
    "sector_hits", None, "Mean hits of the azimuth sectors to train on; default: whole events.", 1
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, data order and thinning.", lower_bound=0)


def main() -> None:
    """Trains until --num_steps or Ctrl-C; the same command goes on where it stopped."""
    tune = tune_flags.asked_tune()
    graphs = tune.voxdyn
    path = voxdyn_path(command_line.workdir("models"), graphs.node2node, graphs.ncell)
    other = TRANSFER_TAG.value
    run = TrainingRun(
        source=event_source(EVENT_START, EVENT_END),
        validation=event_source(VALIDATION_START, VALIDATION_END) if VALIDATE.value else None,
        checkpoint_directory=command_line.workdir("models", SAVE_TAG.value),
        transfer_directory=command_line.workdir("models", other) if other else None,
        log_directory=command_line.workdir("runs", SAVE_TAG.value),
        num_steps=NUM_STEPS.value,
        batch_size=BATCH_SIZE.value,
        fp_dtype=FP_DTYPE.value,
        save_period=SAVE_PERIOD.value,
        phase=None if PHASE.value == "auto" else int(PHASE.value),
        epoch=EPOCH.value,
        soft_reset=bool(SOFT_RESET.value),
    )
    voxdyn = load_voxdyn(path, graphs.node2node, graphs.ncell, graphs.min_count)
    train(run, tune, voxdyn, load_tuned_filter(path.parent, tune, voxdyn))


def event_source(start, end) -> EventSource:
    """Events of a range, thinned as the flags ask."""
    return EventSource(
        command_line.workdir("data"),
        command_line.event_range(start, end),
        RFACTOR_START.value,
        RFACTOR_END.value,
        command_line.noise_ratio(NOISE_RATIO),
        SEED.value,
        SECTOR_HITS.value,
    )


if __name__ == "__main__":
    command_line.run(main, processes.join)
