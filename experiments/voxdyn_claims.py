"""Measures the claims about Voxel-Dynamics on held-out events; writes to figs/voxdyn/.

python experiments/pretrain_voxdyn.py --ncell=16384,65536 --node2node=hyper --event_end=1999
python experiments/voxdyn_claims.py --ncell=16384,65536 --node2node=hyper --claims=pileup,trade
"""

import sys
from collections.abc import Iterator
from functools import partial

import command_line
from absl import flags
from studies.claim_report import CLAIMS, claim_table, draw_claim, notes, write_claim
from studies.voxdyn_claims import HeldOut, Study, count_snapshots, measure_claims
from tqdm import tqdm

from hypertrack_jax.events.event import Event
from hypertrack_jax.events.store import load_event
from hypertrack_jax.events.topology import TOPOLOGIES
from hypertrack_jax.training.batches import EventSource, fixed_events
from hypertrack_jax.voxdyn.fit import Training

flags.adopt_module_key_flags(command_line)

CLAIM_LIST = flags.DEFINE_list("claims", [*CLAIMS], f"To measure: some of {', '.join(CLAIMS)}.")
NCELL = flags.DEFINE_list("ncell", ["16384"], "Numbers of cells; those not fitted are skipped.")
NODE2NODE = flags.DEFINE_list("node2node", ["hyper"], f"Some of {', '.join(TOPOLOGIES)}.")
JUDGED = flags.DEFINE_enum(
    "judged", None, TOPOLOGIES, "Topology of the true edges; default: as fitted."
)
EVENT_START = flags.DEFINE_list("event_start", ["1000"], "First training events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["1999"], "Last training events of the ranges.")
EVAL_START = flags.DEFINE_list("eval_start", ["8750"], "First held-out events of the ranges.")
EVAL_END = flags.DEFINE_list("eval_end", ["8759"], "Last held-out events of the ranges.")
RFACTORS = flags.DEFINE_list(
    "rfactors", ["0.01", "0.1", "0.3", "1.0"], "pileup, trade: fractions of particles kept."
)
RFACTOR = flags.DEFINE_float("rfactor", 0.1, "events, centroids: fraction of particles kept.")
MIN_COUNT = flags.DEFINE_list("min_count", ["1"], "Smallest count of C that makes edges.")
TRADE = flags.DEFINE_list(
    "trade_min_count", ["1", "2", "4", "8", "16"], "trade: smallest counts of C that make edges."
)
MILESTONES = flags.DEFINE_list(
    "milestones", ["10", "30", "100", "300", "1000"], "events: numbers of events counted."
)
CENTROID_HITS = flags.DEFINE_list(
    "centroid_hits",
    ["30000", "100000", "300000", "1000000", "3000000"],
    "centroids: numbers of hits to fit to; those below --ncell are left out.",
)
CENTROID_EVENTS = flags.DEFINE_integer("centroid_events", 100, "centroids: events counted.", 1)
NITER = flags.DEFINE_integer("niter", 10, "Iterations of the centroid fit.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Decides samples, thinning, first centroids.", lower_bound=0)


def main() -> None:
    """Prints a table of each claim, and writes its JSON and its figure."""
    directory = command_line.workdir("figs", "voxdyn")
    flag_values = flags.FLAGS.flags_by_module_dict()[sys.argv[0]]
    settings = {flag.name: flag.value for flag in flag_values}
    asked = study()
    progress = partial(tqdm, unit="event")
    count_c = partial(
        count_snapshots, training=asked.training, directory=directory, progress=progress
    )
    for claim, points in measure_claims(asked, CLAIM_LIST.value, count_c, progress):
        print(f"{CLAIMS[claim]}:", claim_table(points), *notes(points), sep="\n")
        print(write_claim(directory, claim, points, settings))
        print(draw_claim(directory, claim, points), end="\n\n")


def study() -> Study:
    """What the flags ask for."""
    data = command_line.workdir("data")
    training_ids = command_line.event_range(EVENT_START, EVENT_END)
    eval_ids = command_line.event_range(EVAL_START, EVAL_END)

    def held_out(rfactor: float) -> Iterator[Event]:
        source = EventSource(data, eval_ids, rfactor, rfactor, -1, SEED.value)
        yield from tqdm(fixed_events(source), f"rfactor {rfactor:g}", len(eval_ids), unit="event")

    return Study(
        command_line.workdir("models"),
        NODE2NODE.value,
        command_line.whole_numbers(NCELL),
        Training(training_ids, partial(load_event, data), NITER.value, SEED.value),
        HeldOut(held_out, eval_ids, JUDGED.value, command_line.whole_numbers(TRADE)),
        [float(value) for value in RFACTORS.value],
        RFACTOR.value,
        command_line.whole_numbers(MIN_COUNT),
        command_line.whole_numbers(MILESTONES),
        command_line.whole_numbers(CENTROID_HITS),
        CENTROID_EVENTS.value,
    )


if __name__ == "__main__":
    command_line.run(main)
