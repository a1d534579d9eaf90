"""Host side: how long the stages take on one event, measured on the machine at hand."""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypertrack_jax.events.event import Event
from hypertrack_jax.events.store import replace_file
from hypertrack_jax.reconstruct import Reconstructor
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.event_loss import FULL_PHASE, GNN_PHASE
from hypertrack_jax.training.step import begin_phase, init_state, make_train_step
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics, predict_edges

GOOD_EDGE, BAD_EDGE = 0.95, 0.02
"""Probabilities of true and false edges in the suite `cluster`."""


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


def fresh_model(voxdyn: VoxelDynamics, tune: Tune) -> Reconstructor:
    """A model with fresh weights, whose values do not change the work of the edge predictor."""
    state = init_state(tune, jax.random.key(0))
    return Reconstructor(tune, voxdyn, state.params, state.batch_stats)


def measure(suites: list[str], event: Event, model: Reconstructor, runs: int) -> Iterator[Timing]:
    """Times stages on one event.

    Args:
      suites: of `graph` (hits to padded graph), `gnn` (forward pass of the edge predictor in
        inference), `train_step` (gradient of all losses of phase 1, and update), `phase2_step`
        (the same in phase 2, the search for clusters included) and `cluster` (components and
        clusters from good edges: true ones at 0.95, false ones at 0.02). The last two do as much
        work as the weights have learnt to find clusters.
      event: the event, thinned to the pile-up wanted.
      model: weights, graph constructor and tune.
      runs: counted runs of each.

    Yields:
      One timing per suite.

    Raises:
      ValueError: there is no such suite.
    """
    makers = {
        "graph": _graph_work,
        "gnn": _gnn_work,
        "train_step": partial(_train_step_work, phase=GNN_PHASE),
        "phase2_step": partial(_train_step_work, phase=FULL_PHASE),
        "cluster": _cluster_work,
    }
    for suite in suites:
        if suite not in makers:
            raise ValueError(f"--suite={suite}: expected some of {', '.join(makers)}.")
    edges = predict_edges(model.voxdyn, event.position, model.tune.voxdyn.min_count)
    for suite in suites:
        seconds = _timed(makers[suite](event, model), runs)
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


def _graph_work(event: Event, model: Reconstructor) -> Callable[[], object]:
    return lambda: model.graph(event.position)


def _gnn_work(event: Event, model: Reconstructor) -> Callable[[], object]:
    graph = jax.device_put(model.graph(event.position))
    return lambda: model.score(graph)


def _cluster_work(event: Event, model: Reconstructor) -> Callable[[], object]:
    batch = graph_batch([event], model.voxdyn, model.tune.voxdyn).graphs
    graph = jax.device_put(jax.tree.map(lambda array: array[0], batch))
    probability = jnp.where(graph.edges.label, GOOD_EDGE, BAD_EDGE)
    scores = model.score(graph)._replace(probability=probability)
    return lambda: model.cluster(graph, scores, model.keep(graph, scores))


def _train_step_work(event: Event, model: Reconstructor, phase: int) -> Callable[[], object]:
    tune = model.tune
    graphs = jax.device_put(graph_batch([event], model.voxdyn, tune.voxdyn).graphs)
    key = jax.random.key(0)
    train_step = make_train_step(tune, jnp.float32, phase)
    # Copies: a training step donates its state, and the model stays as it is.
    trained = {"params": model.params, "batch_stats": model.batch_stats}
    state = init_state(tune, key)._replace(**jax.tree.map(jnp.copy, trained))
    state = begin_phase(tune, state, phase)

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
