"""The flags that change a Tune, and the Tune that they ask for."""

from dataclasses import replace

import command_line
from absl import flags

from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.tunes.tune import ClusterTune, OptimizerTune, Tune, VoxdynTune, choices

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
CLUSTER = flags.DEFINE_enum(
    "cluster",
    None,
    choices(ClusterTune, "cluster"),
    "What makes clusters. The transformer is trained in phase 2; with any other choice only the "
    "edge predictor is trained. Default: the tune's.",
)
EDGE_THRESHOLD = flags.DEFINE_float(
    "edge_threshold",
    None,
    "Edges less probable than this are cut before clusters are sought; default: the tune's.",
    lower_bound=0,
    upper_bound=1,
)
AUC_THRESHOLD = flags.DEFINE_float(
    "auc_threshold",
    None,
    "Phase 2 begins when the running mean of the training AUC is above this; default: the tune's.",
    lower_bound=0,
    upper_bound=1,
)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer", None, choices(OptimizerTune, "optimizer"), "Optimiser; default: the tune's."
)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", None, "Peak learning rate; default: the tune's.", lower_bound=0
)
SCHEDULER_TYPE = flags.DEFINE_enum(
    "scheduler_type",
    None,
    choices(OptimizerTune, "scheduler_type"),
    "How the learning rate changes; begins anew with phase 2. Default: the tune's.",
)
PERIOD = flags.DEFINE_integer(
    "period",
    None,
    "Steps between restarts of warm-cos, or until cos is at its floor; default: the tune's.",
    lower_bound=1,
)


def asked_tune() -> Tune:
    """The Tune of --param with what other flags change in it.

    Raises:
      ValueError: there is no such tune.
    """
    tune = load_tune(PARAM.value)
    return replace(
        tune,
        voxdyn=command_line.changed(tune.voxdyn, NODE2NODE, NCELL, MIN_COUNT),
        cluster=command_line.changed(tune.cluster, CLUSTER, EDGE_THRESHOLD),
        optimizer=command_line.changed(
            tune.optimizer, AUC_THRESHOLD, OPTIMIZER, LEARNING_RATE, SCHEDULER_TYPE, PERIOD
        ),
    )
