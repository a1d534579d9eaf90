"""Simulates events of the TrackML detector, one file per event under --workdir/data.

python experiments/simulate.py --num_events=20 --event_start=1000 --pileup=200 --seed=0
"""

import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import command_line
from absl import flags
from tqdm import tqdm

from hypertrack_jax.events.simulation import simulate_event
from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.trackml import write_event_csv

NUM_EVENTS = flags.DEFINE_integer("num_events", 10, "How many events to simulate.")
EVENT_START = flags.DEFINE_integer("event_start", 1000, "Number of the first event.")
PILEUP = flags.DEFINE_float("pileup", 200.0, "Mean number of collisions; TrackML has 200.")
SEED = flags.DEFINE_integer("seed", 0, "With the number of an event, decides the event.")
FORMAT = flags.DEFINE_enum("format", "npz", ["npz", "csv"], "What to write; csv is TrackML's own.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Default: one per core.")


def main() -> None:
    """Simulates the events on all cores; an event of the same number is replaced."""
    num_processes = NUM_PROCESSES.value
    if num_processes is None:
        num_processes = os.cpu_count() or 1
    for name, value in (("num_events", NUM_EVENTS.value), ("num_processes", num_processes)):
        if value < 1:
            raise ValueError(f"--{name}={value}: expected a whole number from 1.")
    directory = command_line.workdir("data")
    ids = range(EVENT_START.value, EVENT_START.value + NUM_EVENTS.value)
    simulate = functools.partial(
        simulate_to_file, directory, FORMAT.value, PILEUP.value, SEED.value
    )
    with map_in_processes(simulate, ids, min(num_processes, len(ids))) as done:
        for _ in tqdm(done, total=len(ids), unit="event"):
            pass
    print(f"{len(ids)} events written to {directory}")


@contextlib.contextmanager
def map_in_processes(function, items: Sequence[int], num_processes: int) -> Iterator[Iterator]:
    """Results of `function` in order; on an error, what has not begun is not begun."""
    if num_processes == 1:
        yield map(function, items)
        return
    # Spawned, not forked: a fork would copy the threads that jax may have started. Ctrl-C is for
    # this process alone; the others finish the event at hand, whole.
    with ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        try:
            yield pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)


def simulate_to_file(
    directory: Path, file_format: str, pileup: float, seed: int, event_id: int
) -> None:
    """Simulates one event and writes it."""
    simulated = simulate_event(event_id, pileup, seed)
    if file_format == "csv":
        write_event_csv(directory, *simulated)
    else:
        save_event(directory, simulated.event)


if __name__ == "__main__":
    command_line.run(main)
