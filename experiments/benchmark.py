"""Times the stages on one event under --workdir/data; prints Markdown and writes JSON.

python experiments/benchmark.py --suite=train_step --rfactor=0.008
python experiments/benchmark.py --suite=graph,gnn --rfactor=0.09
"""

from dataclasses import replace

import command_line
import numpy as np
from absl import flags

from hypertrack_jax.benchmark import machine, markdown, measure, write_timings
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import load_event
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.voxdyn.model import load_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)

SUITE = flags.DEFINE_list("suite", ["graph", "gnn", "train_step"], "What to time.")
PARAM = flags.DEFINE_string("param", "helix", f"Tune: one of {', '.join(PACKAGED)}, or a file.")
NCELL = flags.DEFINE_integer("ncell", None, "Voronoi cells; default: the tune's.", lower_bound=1)
MIN_COUNT = flags.DEFINE_integer("min_count", None, "Default: the tune's.", lower_bound=1)
EVENT = flags.DEFINE_integer("event", 1000, "Number of the event.")
RFACTOR = flags.DEFINE_float("rfactor", 0.01, "Fraction of particles kept.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the thinning.", lower_bound=0)
RUNS = flags.DEFINE_integer("runs", 10, "Counted runs of each suite.", lower_bound=1)


def main() -> None:
    """Measures and reports."""
    tune = load_tune(PARAM.value)
    tune = replace(tune, voxdyn=command_line.changed(tune.voxdyn, NCELL, MIN_COUNT))
    wanted = tune.voxdyn
    path = voxdyn_path(command_line.workdir("models"), wanted.node2node, wanted.ncell)
    voxdyn = load_voxdyn(path, wanted.node2node, wanted.ncell)
    full_event = load_event(command_line.workdir("data"), EVENT.value)
    event = thin(full_event, RFACTOR.value, -1, np.random.default_rng(SEED.value))
    timings = list(measure(SUITE.value, event, voxdyn, tune, RUNS.value))
    print(markdown(timings), machine(), sep="\n\n")
    print(write_timings(command_line.workdir("figs", "benchmark.json"), timings))


if __name__ == "__main__":
    command_line.run(main)
