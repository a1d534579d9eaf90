"""Host side: time and memory of a piece of work, and their tables and files."""

import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from hardware import end_with_parent

from benchmarks.program_cost import ProgramCost
from hypertrack_jax.evaluation.tables import markdown_table
from hypertrack_jax.files import replace_file
from hypertrack_jax.memory import give_back_freed_memory, keep_freed_memory

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "pyacts",
    "torch",
    "torch-geometric",
    "scikit-learn",
    "faiss-cpu",
    "scipy",
)

Works = dict[str, Callable[[], Any]]
"""Functions for the same work, by the name of who does it: `ours` or a peer."""


class Timing(NamedTuple):
    """Time and memory of one piece of work by one program; None where a value does not apply."""

    suite: str
    """The work, a slash, and who did it."""
    hits: int
    edges: int
    runs: int
    """Counted runs, after one that compiles and one that warms up."""
    median: float
    """Wall time in seconds, as are the next two."""
    min: float
    max: float
    peak_memory: float
    """Largest resident memory of the process up to the end of this suite, in GB. For whole
    reconstructions it is the peak of the runs, after loading and compiling."""
    cpu: float | None = None
    """Median processor time in seconds, summed over threads. Other busy processes change it less
    than the wall time."""
    idle_memory: float | None = None
    """Resident memory before the runs, after loading and compiling, in GB."""
    efficiency: float | None = None
    """Mean over the events, as are the next two."""
    purity: float | None = None
    dms: float | None = None
    cost: ProgramCost | None = None
    """Operations and bytes of the compiled program."""


class Seconds(NamedTuple):
    """Times of the counted runs of one piece of work."""

    wall: list[float]
    cpu: list[float]


def in_turn(works: Works, runs: int) -> dict[str, Seconds]:
    """Times of each work. The works take turns, so a slow phase of the machine affects all."""
    for work in works.values():
        for _ in range(2):
            jax.block_until_ready(work())
    seconds = {who: Seconds([], []) for who in works}
    for _ in range(runs):
        for who, work in works.items():
            for times, value in zip(seconds[who], run_once(work)[1], strict=True):
                times += value
    return seconds


def run_once(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    """The result of a piece of work and the time of this one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(work())
    return result, Seconds([time.perf_counter() - wall], [time.process_time() - cpu])


def timing_of(suite: str, hits: int, edges: int, seconds: Seconds, **more: Any) -> Timing:
    """The timing of some counted runs, with the peak memory of this process up to now."""
    return Timing(
        suite,
        hits,
        edges,
        len(seconds.wall),
        statistics.median(seconds.wall),
        min(seconds.wall),
        max(seconds.wall),
        peak_memory(),
        statistics.median(seconds.cpu),
        **more,
    )


def alone(function: Callable, *arguments: Any) -> Any:
    """Calls a function in a process of its own, so its peak memory holds nothing else.

    It computes on the device that this process computes on.
    """
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(jax.config.values["jax_platforms"],),
    ) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory() -> float:
    """Largest resident memory of this process up to now, or since `forget_peak`, in GB."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    # Linux counts in units of 1024 bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def forget_peak() -> float:
    """Starts `peak_memory` anew, so that it forgets peaks of loading and compiling.

    Returns:
      The memory that is held now, in GB. On systems that cannot forget, the peak up to now.
    """
    give_back_freed_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def markdown(timings: Sequence[Timing]) -> str:
    """A Markdown table of the timings in milliseconds, and one of the costs of programs."""
    table = [_cells(timing) for timing in timings]
    # Columns that no timing has anything to say in are left out.
    titles = [title for title in _TITLES if any(row[title] for row in table)]
    tables = [markdown_table(titles, [[row[title] for title in titles] for row in table])]
    costs = [_cost_cells(timing.suite, timing.cost) for timing in timings if timing.cost]
    if costs:
        tables.append(markdown_table(_COST_TITLES, costs))
    return "\n\n".join(tables)


def write_timings(path: Path, timings: Sequence[Timing], notes: Sequence[str] = ()) -> list[Path]:
    """Writes the timings, the machine and the date, each file whole or not at all.

    Args:
      path: the JSON file; the tables go beside it, as Markdown.
      timings: what was measured.
      notes: lines below the tables.

    Returns:
      Both files.
    """
    rows = [
        {**timing._asdict(), "cost": timing.cost and timing.cost._asdict()} for timing in timings
    ]
    today = datetime.date.today().isoformat()
    report = {"date": today, "machine": machine(), "timings": rows, "notes": list(notes)}
    tables = path.with_suffix(".md")
    with replace_file(path) as file:
        file.write(json.dumps(report, indent=2).encode())
    with replace_file(tables) as file:
        text = "\n\n".join([markdown(timings), *notes, f"{today}; {machine()}"])
        file.write(f"{text}\n".encode())
    return [path, tables]


def machine() -> str:
    """Processor, devices, versions and load, for the line beside a number."""
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    packages = ", ".join(filter(None, map(_version, _PACKAGES)))
    load = os.getloadavg()[0]
    return (
        f"{_processor()}, {os.cpu_count()} cores, load {load:.1f}; {devices}; "
        f"Python {platform.python_version()}, {packages}"
    )


def _start(platforms: str | None) -> None:
    """Sets up a process as the scripts do."""
    end_with_parent()
    keep_freed_memory()
    jax.config.update("jax_platforms", platforms)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


_TITLES = (
    "suite",
    "hits",
    "edges",
    "runs",
    "median ms",
    "min ms",
    "max ms",
    "CPU ms",
    "peak GB",
    "efficiency",
    "purity",
    "DMS",
)
_COST_TITLES = (
    "program",
    "products, Gflop",
    "all, Gflop, loops once",
    "traffic, GB, loops once",
    "arguments, GB",
    "results, GB",
    "temporary, GB",
)


def _cells(timing: Timing) -> dict[str, str]:
    """The cells of a timing by title; empty where a value does not apply."""
    seconds = timing.median, timing.min, timing.max, timing.cpu
    scores = timing.efficiency, timing.purity, timing.dms
    cells = [
        *(str(value) for value in timing[:4]),
        *("" if value is None else f"{1e3 * value:.1f}" for value in seconds),
        f"{timing.peak_memory:.2f}",
        *("" if value is None else f"{value:.3f}" for value in scores),
    ]
    return dict(zip(_TITLES, cells, strict=True))


def _cost_cells(suite: str, cost: ProgramCost) -> list[str]:
    return [suite, *(f"{value / 1e9:.3g}" for value in cost)]
