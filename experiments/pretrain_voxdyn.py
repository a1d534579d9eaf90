"""Fits Voxel-Dynamics to the events in --workdir/data; writes one file per --ncell to models/.

python experiments/pretrain_voxdyn.py --ncell=16384,65536 --event_start=1000 --event_end=1099
"""

import time
from collections.abc import Iterator

import command_line
import numpy as np
from absl import flags
from tqdm import tqdm

from hypertrack_jax.events.event import Event
from hypertrack_jax.events.store import load_event, parse_int_list
from hypertrack_jax.events.topology import TOPOLOGIES
from hypertrack_jax.voxdyn.model import VoxelDynamics, fit_voxdyns, save_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)

NODE2NODE = flags.DEFINE_enum("node2node", "hyper", TOPOLOGIES, "Which hits of a particle to join.")
NCELL = flags.DEFINE_list("ncell", ["16384"], "Numbers of cells; one file is written for each.")
EVENT_START = flags.DEFINE_list("event_start", ["1000"], "First event of each range.")
EVENT_END = flags.DEFINE_list("event_end", ["1099"], "Last event of each range.")
NITER = flags.DEFINE_integer("niter", 10, "Iterations of the centroid fit.", lower_bound=0)
MAX_CENTROID_HITS = flags.DEFINE_integer(
    "max_centroid_hits", 2_000_000, "Most hits to fit the centroids to.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Decides the hits and the first centroids.", lower_bound=0)


def main() -> None:
    """Fits, reports and saves."""
    data = command_line.workdir("data")
    ids = command_line.event_range(EVENT_START, EVENT_END)
    ncells = parse_int_list("ncell", NCELL.value)
    start = time.perf_counter()
    passes = iter(("sampling hits", "counting pairs"))

    def events() -> Iterator[Event]:
        for event_id in tqdm(ids, desc=next(passes), unit="event"):
            yield load_event(data, event_id)

    fitted = fit_voxdyns(
        events, ncells, NODE2NODE.value, NITER.value, SEED.value, MAX_CENTROID_HITS.value
    )
    for vd in fitted:
        path = voxdyn_path(command_line.workdir("models"), NODE2NODE.value, vd.num_cells)
        print(describe(vd), save_voxdyn(path, vd), sep="\n  ")
    print(f"{len(ids)} events in {time.perf_counter() - start:.1f} s")


def describe(vd: VoxelDynamics) -> str:
    """What has been fitted, in one line."""
    num_entries = len(vd.columns)
    objective = (
        " -> ".join(f"{value:.4g}" for value in vd.objective[[0, -1]])
        if len(vd.objective)
        else "not fitted"
    )
    return (
        f"{vd.num_cells} cells: objective {objective} mm^2, {num_entries} connected pairs "
        f"({num_entries / vd.num_cells**2:.3%} of all), "
        f"{np.count_nonzero(np.diff(vd.row_offsets) == 0)} cells without any"
    )


if __name__ == "__main__":
    command_line.run(main)
