"""Host side: how long the stages take on one event, measured on the machine at hand."""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypertrack_jax.events.event import Event
from hypertrack_jax.events.store import replace_file
from hypertrack_jax.graph.event_graph import hit_graph
from hypertrack_jax.reconstruct import scored_graph
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.event_loss import EDGE
from hypertrack_jax.training.step import init_state, make_train_step
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics, predict_edges


class Timing(NamedTuple):
    """Wall time of one piece of work."""

    suite: str
    hits: int
    edges: int
    runs: int
    """Counted runs, after one that compiles and one that warms up."""
    median: float
    """Seconds, as are the next two."""
    min: float
    max: float
    peak_memory: float
    """Largest resident memory of the process up to the end of this suite, in GB."""


def measure(
    suites: list[str], event: Event, voxdyn: VoxelDynamics, tune: Tune, runs: int
) -> Iterator[Timing]:
    """Times stages on one event, with fresh weights, whose values do not change the work.

    Args:
      suites: of `graph` (hits to padded graph), `gnn` (forward pass of the edge predictor in
        inference) and `train_step` (gradient of all losses, and update).
      event: the event, thinned to the pile-up wanted.
      voxdyn: the graph constructor.
      tune: network, losses, `min_count`.
      runs: counted runs of each.

    Yields:
      One timing per suite.
    """
    makers = {"graph": _graph_work, "gnn": _gnn_work, "train_step": _train_step_work}
    for suite in suites:
        if suite not in makers:
            raise ValueError(f"--suite={suite}: expected some of {', '.join(makers)}.")
    edges = predict_edges(voxdyn, event.position, tune.voxdyn.min_count)
    for suite in suites:
        seconds = _timed(makers[suite](event, voxdyn, tune), runs)
        yield Timing(
            suite,
            len(event.position),
            len(edges.senders),
            runs,
            statistics.median(seconds),
            min(seconds),
            max(seconds),
            # Linux counts in units of 1024 bytes.
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        )


def markdown(timings: Sequence[Timing]) -> str:
    """The timings as a Markdown table, in milliseconds."""
    lines = ["| suite | hits | edges | runs | median ms | min ms | max ms | peak GB |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for timing in timings:
        times = " | ".join(f"{1e3 * value:.1f}" for value in timing[4:7])
        sizes = " | ".join(str(value) for value in timing[:4])
        lines.append(f"| {sizes} | {times} | {timing.peak_memory:.2f} |")
    return "\n".join(lines)


def write_timings(path: Path, timings: Sequence[Timing]) -> Path:
    """Writes the timings and the machine as JSON, whole or not at all."""
    report = {"machine": machine(), "timings": [timing._asdict() for timing in timings]}
    with replace_file(path) as file:
        file.write(json.dumps(report, indent=2).encode())
    return path


def machine() -> str:
    """Processor, devices and versions, for the line beside a number."""
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "numpy"))
    return f"{platform.machine()}, {os.cpu_count()} cores; {devices}; {packages}"


def _graph_work(event: Event, voxdyn: VoxelDynamics, tune: Tune) -> Callable[[], object]:
    def work():
        edges = predict_edges(voxdyn, event.position, tune.voxdyn.min_count)
        return hit_graph(event.position, *edges)

    return work


def _gnn_work(event: Event, voxdyn: VoxelDynamics, tune: Tune) -> Callable[[], object]:
    graph = jax.device_put(_graph_work(event, voxdyn, tune)())
    state = init_state(tune, jax.random.key(0))
    params = state.params[EDGE]
    return lambda: scored_graph(tune.network, params, state.batch_stats, graph)


def _train_step_work(event: Event, voxdyn: VoxelDynamics, tune: Tune) -> Callable[[], object]:
    graphs = jax.device_put(graph_batch([event], voxdyn, tune.voxdyn).graphs)
    key = jax.random.key(0)
    train_step = make_train_step(tune, jnp.float32)
    state = init_state(tune, key)

    def work():
        nonlocal state
        state, metrics = train_step(state, graphs, key)
        return state, metrics

    return work


def _timed(work: Callable[[], object], runs: int) -> list[float]:
    for _ in range(2):
        jax.block_until_ready(work())
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - started)
    return seconds
