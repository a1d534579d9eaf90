"""Shared use: two trainings of one tag, threads on one model; and the hits in another order."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from hypertrack_jax.events.store import load_event
from hypertrack_jax.reconstruction.reconstructor import Reconstructor, by_first_hit
from studies.faults.toy_work import EVENTS, copied, run, sentence_of, train

NUM_THREADS, NUM_CALLS = 8, 125
MOST_GROWTH = 50e6  # bytes


def two_trainings(workdir: Path, number: int) -> str:
    """One goes on as if it were alone; the other is refused."""
    place = copied(workdir, workdir / "two", "data", "models", "tiny.py")
    first = subprocess.Popen(
        train(place, "both", 4000), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    for line in first.stderr:
        if "compiling" in line:
            break
    second = sentence_of(run(train(place, "both", 8)))
    went_on = first.poll() is None
    first.kill()
    first.communicate()
    if not went_on:
        return "wrong: the first training ended"
    return "refused" if second == "refused" else f"wrong: the second training was {second}"


def threads(workdir: Path, number: int) -> str:
    """Threads call one model a thousand times: the same tracks, and memory stays flat."""
    model = loaded(workdir)
    events = [load_event(workdir / "data", event_id).position for event_id in EVENTS]
    expected = [model(hits).hit_label for hits in events]

    def calls(thread: int) -> bool:
        order = [(thread + call) % len(events) for call in range(NUM_CALLS)]
        return all(np.array_equal(model(events[i]).hit_label, expected[i]) for i in order)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        # The first round takes the memory that the threads themselves need.
        list(pool.map(calls, range(NUM_THREADS)))
        before = resident()
        are_same = all(pool.map(calls, range(NUM_THREADS)))
        growth = resident() - before
    if not are_same:
        return "wrong: a thread found other tracks"
    return "right" if growth < MOST_GROWTH else f"wrong: memory grew by {growth / 1e6:.0f} MB"


def other_order(workdir: Path, number: int) -> str:
    """Permuted hits give the same tracks, and the same hits none."""
    hits = load_event(workdir / "data", EVENTS[number % len(EVENTS)]).position
    order = np.random.default_rng(number).permutation(len(hits))
    first, second = loaded(workdir)(hits).hit_label, loaded(workdir)(hits[order]).hit_label
    back = np.empty_like(second)
    back[order] = second
    return "right" if np.array_equal(by_first_hit(back), first) else "wrong: other tracks"


@cache
def loaded(workdir: Path) -> Reconstructor:
    """The toy model."""
    return Reconstructor.load("tiny", workdir / "models")


def resident() -> int:
    """Bytes of memory that this process has now."""
    if sys.platform != "linux":
        return 0
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
