"""Simulates events of the TrackML detector, one file per event under --workdir/data.

python experiments/simulate.py --num_events=20 --event_start=1000 --pileup=200 --seed=0
"""

import functools
from pathlib import Path

import command_line
from absl import flags
from hardware import map_in_processes
from tqdm import tqdm

from hypertrack_jax.events.modules import write_detector_csv
from hypertrack_jax.events.simulation import FIELDS, generic_detector, simulate_event
from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.trackml import write_event_csv

flags.declare_key_flag("workdir")

NUM_EVENTS = flags.DEFINE_integer("num_events", 10, "How many events to simulate.", lower_bound=1)
EVENT_START = flags.DEFINE_integer("event_start", 1000, "Number of the first event.", lower_bound=0)
PILEUP = flags.DEFINE_float("pileup", 200.0, "Mean number of collisions; TrackML has 200.")
SEED = flags.DEFINE_integer(
    "seed", 0, "Decides the events, together with their numbers.", lower_bound=0
)
FIELD = flags.DEFINE_enum(
    "field",
    "solenoid",
    FIELDS,
    "Magnetic field. solenoid: as in the real TrackML event and for training the shipped models; "
    "uniform: 2 T everywhere.",
)
FORMAT = flags.DEFINE_enum("format", "npz", ["npz", "csv"], "What to write; csv is TrackML's own.")
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Processes that simulate; default: one per core.", lower_bound=1
)


def main() -> None:
    """Simulates the events on all cores; an event of the same number is replaced."""
    directory = command_line.workdir("data")
    ids = range(EVENT_START.value, EVENT_START.value + NUM_EVENTS.value)
    simulate = functools.partial(
        simulate_to_file, directory, FORMAT.value, PILEUP.value, SEED.value, FIELD.value
    )
    with map_in_processes(simulate, ids, NUM_PROCESSES.value) as done:
        for _ in tqdm(done, total=len(ids), unit="event"):
            pass
    print(f"{len(ids)} events written to {directory}")


def simulate_to_file(
    directory: Path, file_format: str, pileup: float, seed: int, field: str, event_id: int
) -> None:
    """Simulates one event and writes it."""
    simulated = simulate_event(event_id, pileup, seed, field)
    if file_format == "csv":
        write_detector_csv(directory, generic_detector().modules)
        write_event_csv(directory, *simulated)
    else:
        save_event(directory, simulated.event)


if __name__ == "__main__":
    command_line.run(main)
