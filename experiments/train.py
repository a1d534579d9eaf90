"""Trains the GNN edge predictor on events under --workdir/data.

python experiments/train.py --param=helix --rfactor_start=0.01 --rfactor_end=0.01 --save_tag=pu2
"""

from dataclasses import replace

import command_line
from absl import flags

from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.training.loop import DTYPES, TrainingRun, train
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.tunes.tune import OptimizerTune, VoxdynTune, choices
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)

PARAM = flags.DEFINE_string(
    "param", "tune-5", f"Tune: one of {', '.join(PACKAGED)}, or a Python file that defines TUNE."
)
NODE2NODE = flags.DEFINE_enum(
    "node2node", None, choices(VoxdynTune, "node2node"), "Truth topology; default: the tune's."
)
NCELL = flags.DEFINE_integer("ncell", None, "Voronoi cells; default: the tune's.", lower_bound=1)
MIN_COUNT = flags.DEFINE_float(
    "min_count", None, "Smallest C that makes edges, or a quantile; default: the tune's."
)
LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Peak rate; default: the tune's.", 0)
SCHEDULER_TYPE = flags.DEFINE_enum(
    "scheduler_type", None, choices(OptimizerTune, "scheduler_type"), "Default: the tune's."
)
PERIOD = flags.DEFINE_integer(
    "period", None, "Steps between restarts of warm-cos; default: the tune's.", lower_bound=1
)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer", None, choices(OptimizerTune, "optimizer"), "Default: the tune's."
)
EPOCH = flags.DEFINE_integer(
    "epoch", -1, "-1: go on from the latest checkpoint if any; 0: anew; else from that step.", -1
)
SAVE_TAG = flags.DEFINE_string("save_tag", None, "Name of the model.", required=True)
RFACTOR_START = flags.DEFINE_float("rfactor_start", 0.01, "Smallest fraction of particles kept.")
RFACTOR_END = flags.DEFINE_float("rfactor_end", 0.01, "Largest fraction of particles kept.")
NOISE_RATIO = flags.DEFINE_string(
    "noise_ratio", "-1", "Noise hits over all hits; -1: as in the event; none: no noise."
)
EVENT_START = flags.DEFINE_list("event_start", ["2450", "5950"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["5899", "7499"], "Last events of the ranges.")
VALIDATE = flags.DEFINE_integer("validate", 0, "1: look at validation events, too.", 0, 1)
VALIDATION_START = flags.DEFINE_list("validation_start", ["7500"], "As --event_start.")
VALIDATION_END = flags.DEFINE_list("validation_end", ["7549"], "As --event_end.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Events per update.", lower_bound=1)
FP_DTYPE = flags.DEFINE_enum("fp_dtype", "float32", DTYPES, "Type of arrays; weights are float32.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 10_000, "Updates in all.", lower_bound=1)
SAVE_PERIOD = flags.DEFINE_float("save_period", 15.0, "Minutes between checkpoints.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, data order and thinning.", lower_bound=0)


def main() -> None:
    """Trains until --num_steps or Ctrl-C; the same command goes on where it stopped."""
    tune = load_tune(PARAM.value)
    tune = replace(
        tune,
        voxdyn=command_line.changed(tune.voxdyn, NODE2NODE, NCELL, MIN_COUNT),
        optimizer=command_line.changed(
            tune.optimizer, LEARNING_RATE, SCHEDULER_TYPE, PERIOD, OPTIMIZER
        ),
    )
    voxdyn = tune.voxdyn
    path = voxdyn_path(command_line.workdir("models"), voxdyn.node2node, voxdyn.ncell)
    run = TrainingRun(
        source=event_source(EVENT_START, EVENT_END),
        validation=event_source(VALIDATION_START, VALIDATION_END) if VALIDATE.value else None,
        checkpoint_directory=command_line.workdir("models", SAVE_TAG.value),
        log_directory=command_line.workdir("runs", SAVE_TAG.value),
        num_steps=NUM_STEPS.value,
        batch_size=BATCH_SIZE.value,
        fp_dtype=FP_DTYPE.value,
        save_period=SAVE_PERIOD.value,
    )
    loaded = load_voxdyn(path, voxdyn.node2node, voxdyn.ncell, voxdyn.min_count)
    train(run, tune, loaded, EPOCH.value)


def event_source(start, end) -> EventSource:
    """Events of a range, thinned as the flags ask."""
    return EventSource(
        command_line.workdir("data"),
        command_line.event_range(start, end),
        RFACTOR_START.value,
        RFACTOR_END.value,
        command_line.noise_ratio(NOISE_RATIO),
        SEED.value,
    )


if __name__ == "__main__":
    command_line.run(main)
