"""Times the stages on one event under --workdir/data; prints Markdown and writes JSON.

python experiments/benchmark.py --suite=train_step --rfactor=0.008
python experiments/benchmark.py --suite=graph,gnn --rfactor=0.09
python experiments/benchmark.py --suite=voxdyn --event=8752 --event_start=1000 --event_end=1499
"""

from dataclasses import replace

import command_line
import numpy as np
from absl import flags

from hypertrack_jax.benchmark import (
    Timing,
    fresh_model,
    machine,
    markdown,
    measure,
    write_timings,
)
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import load_event
from hypertrack_jax.reconstruct import Reconstructor, load_reconstructor
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path
from hypertrack_jax.voxdyn_benchmark import Setting, growth, measure_voxdyn, ratios

flags.adopt_module_key_flags(command_line)

SUITE = flags.DEFINE_list("suite", ["graph", "gnn", "train_step"], "What to time; or voxdyn.")
VOXDYN_PARTS = flags.DEFINE_list(
    "voxdyn_parts", ["assign", "centroids", "count", "graph"], "Parts of the suite voxdyn."
)
PARAM = flags.DEFINE_string("param", "helix", f"Tune: one of {', '.join(PACKAGED)}, or a file.")
READ_TAG = flags.DEFINE_string(
    "read_tag", None, "Trained model to time instead of fresh weights; cluster and phase2_step."
)
NODE2NODE = flags.DEFINE_list("node2node", ["hyper"], "voxdyn: topologies; C counts the first.")
NCELL = flags.DEFINE_integer("ncell", None, "Voronoi cells; default: the tune's.", lower_bound=1)
MIN_COUNT = flags.DEFINE_float("min_count", None, "Default: the tune's; voxdyn: 1.")
EVENT = flags.DEFINE_integer("event", 1000, "Number of the event.")
EVENT_START = flags.DEFINE_list("event_start", ["1000"], "voxdyn: first events of the fit.")
EVENT_END = flags.DEFINE_list("event_end", ["1499"], "voxdyn: last events of the fit.")
RFACTOR = flags.DEFINE_float("rfactor", 0.01, "Fraction of particles kept.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the thinning.", lower_bound=0)
RUNS = flags.DEFINE_integer("runs", 10, "Counted runs of each suite.", lower_bound=1)


def main() -> None:
    """Measures and reports."""
    timings = voxdyn_timings() if SUITE.value == ["voxdyn"] else stage_timings()
    print(markdown(timings), machine(), sep="\n\n")
    if SUITE.value == ["voxdyn"]:
        print("", *ratios(timings), *growth(timings), sep="\n")
    name = "benchmark_voxdyn.json" if SUITE.value == ["voxdyn"] else "benchmark.json"
    print(write_timings(command_line.workdir("figs", name), timings))


def voxdyn_timings() -> list[Timing]:
    """Voxel-Dynamics at scale, beside its peers."""
    setting = Setting(
        data=command_line.workdir("data"),
        event=EVENT.value,
        training=command_line.event_range(EVENT_START, EVENT_END),
        models=command_line.workdir("models"),
        node2nodes=NODE2NODE.value,
        min_count=MIN_COUNT.value or 1,
    )
    return list(measure_voxdyn(setting, VOXDYN_PARTS.value, RUNS.value))


def stage_timings() -> list[Timing]:
    """The stages of one event."""
    full_event = load_event(command_line.workdir("data"), EVENT.value)
    event = thin(full_event, RFACTOR.value, -1, np.random.default_rng(SEED.value))
    return list(measure(SUITE.value, event, model(), RUNS.value))


def model() -> Reconstructor:
    """The trained model that is asked for, or one with fresh weights."""
    models = command_line.workdir("models")
    if READ_TAG.value:
        return load_reconstructor(models, READ_TAG.value)
    tune = load_tune(PARAM.value)
    wanted = command_line.changed(tune.voxdyn, NCELL, MIN_COUNT)
    path = voxdyn_path(models, wanted.node2node, wanted.ncell)
    voxdyn = load_voxdyn(path, wanted.node2node, wanted.ncell)
    return fresh_model(voxdyn, replace(tune, voxdyn=wanted))


if __name__ == "__main__":
    command_line.run(main)
