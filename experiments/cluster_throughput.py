"""Events per second of `hypertrack reconstruct --scheduler` against the number of workers.

python experiments/cluster_throughput.py --workdir=work --rfactor=0.1 --event_start=8750 \
    --event_end=8789 --workers=1,2

The workers are processes of this machine, each with one core of its own, as a batch system gives
them. Before the timed runs, one run over all events compiles the programs.
"""

import functools
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import command_line
import numpy as np
from absl import flags

from hypertrack_jax.command.main import Options, load_model
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.places import find_events
from hypertrack_jax.events.store import load_event, save_event
from hypertrack_jax.streams import stream

flags.adopt_module_key_flags(command_line)

MODEL = flags.DEFINE_string(
    "model", "positions", "The model, as `hypertrack reconstruct` takes it."
)
RFACTOR = flags.DEFINE_float("rfactor", 0.1, "Fraction of particles kept.")
EVENT_START = flags.DEFINE_list("event_start", ["8750"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["8789"], "Last events of the ranges.")
WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of workers; 1 comes first.")
RUNS = flags.DEFINE_integer("runs", 3, "Timed runs for each number.", lower_bound=1)


def main() -> None:
    """Prints a line for each number of workers."""
    numbers = command_line.whole_numbers(WORKERS)
    if numbers[0] != 1:
        raise UserError(
            f"--workers={','.join(WORKERS.value)}: the first number must be 1, since the others "
            "are compared with one worker."
        )
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingPackageError(
            "needs the extra: pip install 'hypertrack-jax[cluster]'"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    ids = command_line.event_range(EVENT_START, EVENT_END)
    data, output = (
        command_line.workdir("cluster", "data"),
        command_line.workdir("cluster", "tracks"),
    )
    for number in ids:
        event = load_event(command_line.workdir("data"), number)
        rng = stream("thin for a benchmark", 0, number)
        save_event(data, thin(event, RFACTOR.value, -1, rng))
    print("| workers | events per second | of one worker |\n|:--------|------:|------:|")
    one, cores = None, sorted(os.sched_getaffinity(0))
    for num_workers in numbers:
        # `Any`, since its annotations allow neither `dashboard_address=None` nor `with`.
        local: Any = LocalCluster
        with local(
            n_workers=num_workers, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster:
            with Client(cluster.scheduler_address) as client:
                for place, worker in enumerate(client.scheduler_info(-1)["workers"]):
                    core = cores[place % len(cores)]
                    client.run(os.sched_setaffinity, 0, {core}, workers=[worker])
            seconds = [
                seconds_of(cluster.scheduler_address, data, output) for _ in range(RUNS.value + 1)
            ]
        rates = len(ids) / np.array(seconds[1:])
        one = one or float(np.median(rates))
        spread = f"{np.median(rates):.2f} ({rates.min():.2f} - {rates.max():.2f})"
        print(f"| {num_workers} | {spread} | {np.median(rates) / one:.2f} |", flush=True)


def seconds_of(address: str, data: Path, output: Path) -> float:
    """Wall time from the paths to the last submission, with loading the model on the workers."""
    from hypertrack_jax.evaluation.cluster_files import reconstruct_on_cluster

    shutil.rmtree(output, ignore_errors=True)
    model = Path(MODEL.value)
    options = Options(
        model.absolute() if model.exists() else model,
        *(output, None, None, 0, False),
        *(command_line.DEVICE.value, command_line.CACHE.value, address),
    )
    problems: list[str] = []
    started = time.perf_counter()
    load, places = functools.partial(load_model, options), find_events([data])
    rows = list(reconstruct_on_cluster(address, load, places, output, 4, problems))
    seconds = time.perf_counter() - started
    if problems or len(rows) != len(places):
        raise UserError(f"{len(problems)} events were left out: {problems[:1]}")
    return seconds


if __name__ == "__main__":
    command_line.run(main)
