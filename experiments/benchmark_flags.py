"""The flags of benchmark.py, and the model and peers that they ask for."""

from collections.abc import Sequence
from dataclasses import replace

import command_line
from absl import flags
from benchmarks.stages import PEERS, fresh_model, installed_peers, require_peers

from hypertrack_jax.errors import UserError
from hypertrack_jax.reconstruction.load import load_tuned_filter
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)

ALONE = ("voxdyn", "reconstruct", "scaling")
"""Suites that cannot be combined with others."""

SUITE = flags.DEFINE_list(
    "suite",
    ["graph", "gnn", "train_step"],
    f"To time: some of graph, gnn, train_step, phase2_step, cluster; or one of {', '.join(ALONE)}.",
)
PEERS_ASKED = flags.DEFINE_list(
    "peers", None, f"Programs to run beside ours: some of {', '.join(PEERS)}; default: installed."
)
VOXDYN_PARTS = flags.DEFINE_list(
    "voxdyn_parts", ["assign", "centroids", "count", "graph"], "voxdyn: parts to time."
)
PARAM = flags.DEFINE_string("param", "helix", f"Tune: one of {', '.join(PACKAGED)}, or a file.")
READ_TAG = flags.DEFINE_string(
    "read_tag",
    None,
    "Trained model, needed by reconstruct and scaling; default: fresh weights of --param.",
)
NODE2NODE = flags.DEFINE_list(
    "node2node", ["hyper"], "voxdyn: topologies of the graphs; C is counted for the first alone."
)
NCELL = flags.DEFINE_integer("ncell", None, "Voronoi cells; default: the tune's.", lower_bound=1)
MIN_COUNT = flags.DEFINE_float(
    "min_count", None, "Smallest C that makes edges; default: the tune's; voxdyn: 1."
)
EVENT = flags.DEFINE_integer("event", 1000, "Number of the event.")
NUM_EVENTS = flags.DEFINE_integer(
    "num_events", 1, "reconstruct, scaling: number of events, from --event on.", lower_bound=1
)
EVENT_START = flags.DEFINE_list("event_start", ["1000"], "voxdyn: first events of the fit.")
EVENT_END = flags.DEFINE_list("event_end", ["1499"], "voxdyn: last events of the fit.")
RFACTOR = flags.DEFINE_list(
    "rfactor", ["0.01"], "Fraction of particles kept; reconstruct and scaling take several."
)
NOISE_RATIO = flags.DEFINE_string(
    "noise_ratio", "-1", "Noise hits over all hits; -1: as in the event; none: no noise."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the thinning.", lower_bound=0)
RUNS = flags.DEFINE_integer("runs", 10, "Timed runs, after two untimed ones.", lower_bound=1)
COST = flags.DEFINE_boolean(
    "cost",
    True,
    "Report operations and bytes of GNN, training steps and reconstruction; compiles them again.",
)


def peers() -> Sequence[str]:
    """The peers that are asked for, or those that are installed."""
    if PEERS_ASKED.value is None:
        return installed_peers()
    require_peers(PEERS_ASKED.value)
    return PEERS_ASKED.value


def model() -> Reconstructor:
    """The trained model that is asked for, or one with fresh weights."""
    models = command_line.workdir("models")
    if READ_TAG.value:
        loaded = Reconstructor.load(READ_TAG.value, models)
        return loaded if MIN_COUNT.value is None else loaded.with_min_count(MIN_COUNT.value)
    tune = load_tune(PARAM.value)
    wanted = command_line.changed(tune.voxdyn, NCELL, MIN_COUNT)
    path = voxdyn_path(models, wanted.node2node, wanted.ncell)
    voxdyn = load_voxdyn(path, wanted.node2node, wanted.ncell)
    tune = replace(tune, voxdyn=wanted)
    return fresh_model(voxdyn, tune, load_tuned_filter(models, tune, voxdyn))


def read_tag() -> str:
    """The trained model, without which the suite has no meaning."""
    if READ_TAG.value is None:
        raise UserError(
            f"--suite={','.join(SUITE.value)} scores tracks, which takes a trained model; name one "
            "with --read_tag."
        )
    return READ_TAG.value


def rfactor() -> float:
    """The one rfactor of the stages."""
    values = command_line.floats(RFACTOR)
    if len(values) != 1:
        raise UserError(
            f"--rfactor={','.join(RFACTOR.value)}: --suite={','.join(SUITE.value)} takes one; "
            "several are for reconstruct and scaling."
        )
    return values[0]
