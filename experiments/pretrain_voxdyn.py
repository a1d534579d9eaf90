"""Fits Voxel-Dynamics to events in --workdir/data: a file in models/ per topology and --ncell.

Ctrl-C keeps what has been counted, and the same command goes on from there.

python experiments/pretrain_voxdyn.py --ncell=16384,65536 --event_start=1000 --event_end=1099
"""

import time
from functools import partial

import command_line
from absl import flags
from bad_events import ReadableEvents
from benchmarks.timing import peak_memory
from graph_report import describe_voxdyn, report_graphs
from tqdm import tqdm

from hypertrack_jax.command.start import end_with
from hypertrack_jax.events.store import load_event
from hypertrack_jax.events.topology import TOPOLOGIES, require_topology
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.voxdyn.fit import MAX_COPIES, Training, fit_voxdyns
from hypertrack_jax.voxdyn.model import require_min_count
from hypertrack_jax.voxdyn.storage import load_voxdyn, save_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)

NODE2NODE = flags.DEFINE_list(
    "node2node", ["hyper"], f"Which hits of a particle to join: some of {', '.join(TOPOLOGIES)}."
)
NCELL = flags.DEFINE_list("ncell", ["16384"], "Numbers of cells.")
EVENT_START = flags.DEFINE_list("event_start", ["1000"], "First event of each range.")
EVENT_END = flags.DEFINE_list("event_end", ["1099"], "Last event of each range.")
NITER = flags.DEFINE_integer("niter", 10, "Iterations of the centroid fit.", lower_bound=0)
MAX_CENTROID_HITS = flags.DEFINE_integer(
    "max_centroid_hits", 2_000_000, "Most hits to fit the centroids to.", lower_bound=1
)
NUM_COPIES = flags.DEFINE_integer(
    "num_copies",
    1,
    "Copies of each event to count. 2: also turned by 180 degrees; 4: both also mirrored in z; "
    "more: also at other azimuths.",
    lower_bound=1,
    upper_bound=MAX_COPIES,
)
SEED = flags.DEFINE_integer("seed", 0, "Decides the hits and the first centroids.", lower_bound=0)
EVAL_START = flags.DEFINE_list(
    "eval_start", [], "First held-out events to judge the graphs by; default: two of the fit."
)
EVAL_END = flags.DEFINE_list("eval_end", [], "Last held-out event of each range.")
RFACTORS = flags.DEFINE_list(
    "rfactors", ["0.01", "0.1"], "Fractions of particles at which to judge the graphs; 1: all."
)
MIN_COUNT = flags.DEFINE_float(
    "min_count", 1, "Smallest C, or quantile, that makes edges in the judged graphs."
)


def main() -> None:
    """Fits, saves and reports."""
    data, models = command_line.workdir("data"), command_line.workdir("models")
    ids = command_line.event_range(EVENT_START, EVENT_END)
    judged = command_line.event_range(EVAL_START, EVAL_END) if EVAL_START.value else ids[:2]
    rfactors = command_line.floats(RFACTORS)
    ncells = command_line.whole_numbers(NCELL)
    for node2node in NODE2NODE.value:
        require_topology(node2node)
    # Checked before the fit, which takes long.
    require_min_count(MIN_COUNT.value)
    how = NITER.value, SEED.value, MAX_CENTROID_HITS.value, NUM_COPIES.value
    training = Training(ids, partial(load_event, data), *how)
    started = time.perf_counter()
    paths = []
    for vd in fit_voxdyns(training, ncells, NODE2NODE.value, models, progress):
        paths.append(save_voxdyn(voxdyn_path(models, vd.node2node, vd.num_cells), vd))
        seconds = time.perf_counter() - started
        print(f"\n{describe_voxdyn(vd)}\n  {seconds:.1f} s, peak memory {peak_memory():.2f} GB")
        print(f"  {paths[-1]}", flush=True)
        # Large: freed before the next one is made.
        del vd
    if not EVAL_START.value:
        print("\nThe graphs are judged by events of the fit, which flatters; see --eval_start.")
    problems = []
    for path in paths:
        vd = load_voxdyn(path, min_count=MIN_COUNT.value)
        for rfactor in rfactors:
            events = ReadableEvents(EventSource(data, judged, rfactor, rfactor, -1, SEED.value))
            report_graphs(vd, events, vd.node2node, None)
            problems += events.problems
    end_with(list(dict.fromkeys(problems)))


def progress(event_ids, what: str):
    """A progress bar over events."""
    return tqdm(event_ids, desc=what, unit="event")


if __name__ == "__main__":
    command_line.run(main)
