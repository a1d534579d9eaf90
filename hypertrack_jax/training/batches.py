"""Host side: from stored events to stacked, padded graphs, as a pure function of (seed, step)."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from hypertrack_jax.capacities import power_above
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.sectors import Sector, draw_sector, whole
from hypertrack_jax.events.store import load_event, step_event_ids
from hypertrack_jax.graph.event_graph import LEAST_EDGES, EventGraph, bucket_for, event_graph
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.streams import stream
from hypertrack_jax.training.flow_loss import hit_conditions
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

_PREFETCHED = 4
"""Batches made ahead of the training step."""


class EventSource(NamedTuple):
    """Where events come from and how they are thinned."""

    directory: Path
    """Directory of the event files."""
    event_ids: Sequence[int]
    """Events to draw from."""
    rfactor_start: float
    """Smallest fraction of particles kept; each event draws its own between start and end, with a
    logarithm that is uniform."""
    rfactor_end: float
    """Largest fraction of particles kept."""
    noise_ratio: float | None
    """Noise hits over all hits after thinning; -1: as in the event; None: no noise."""
    seed: int
    """Seed of the order and of the thinning."""
    sector_hits: int | None = None
    """Hits of the azimuth sectors that the thinned events are cut to; None: whole events."""


class Batch(NamedTuple):
    """The graphs of one training step."""

    graphs: EventGraph
    """NumPy arrays with a leading axis over the events."""
    num_hits: int
    num_edges: int


def step_events(
    source: EventSource, step: int, batch_size: int, places: Sequence[int] | None = None
) -> list[Sector]:
    """The thinned events of a step; the same for the same (source, step), whatever came before.

    `places` selects events by their place in the batch; None selects all. No others are read.
    """
    ids = step_event_ids(source.event_ids, source.seed, step, batch_size)
    return [
        _drawn(source, ids[place], stream("thin for training", source.seed, step, place))
        for place in (range(batch_size) if places is None else places)
    ]


def fixed_events(source: EventSource) -> Iterator[Event]:
    """The events of the source in order, each drawn the same way at every call."""
    return (sector.event for sector in fixed_sectors(source))


def fixed_sectors(source: EventSource) -> Iterator[Sector]:
    """The same as sectors."""
    for event_id in source.event_ids:
        yield _drawn(source, event_id, stream("thin", source.seed, event_id))


def graph_batch(
    sectors: Sequence[Sector],
    voxdyn: VoxelDynamics,
    tune: Tune,
    edge_filter: FilterWeights | None = None,
) -> Batch:
    """Candidate graphs of some sectors, or whole events, padded to one bucket and stacked.

    If the flow's loss has a weight, their `globals` are the conditions of its density.
    """
    events = [sector.event for sector in sectors]
    edges = [
        predict_edges(voxdyn, event.position, tune.voxdyn.min_count, edge_filter, event.cells)
        for event in events
    ]
    has_halo = not all(sector.is_core.all() for sector in sectors)
    num_hits = max(len(event.position) for event in events)
    num_edges = max(len(candidates.senders) for candidates in edges)
    # In powers of two: each size has a program of its own, which takes long to compile.
    bucket = bucket_for(num_hits, power_above(num_edges, LEAST_EDGES))
    graphs = [
        event_graph(
            sector.event,
            *candidates,
            node2node=tune.voxdyn.label_topology,
            bucket=bucket,
            is_core=sector.is_core if has_halo else None,
        )
        for sector, candidates in zip(sectors, edges, strict=True)
    ]
    if tune.loss.flow > 0:
        graphs = [
            graph._replace(globals=hit_conditions(event, bucket.num_nodes))
            for event, graph in zip(events, graphs, strict=True)
        ]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *graphs)
    return Batch(stacked, num_hits, num_edges)


@contextmanager
def prefetched(
    source: EventSource,
    voxdyn: VoxelDynamics,
    tune: Tune,
    batch_size: int,
    first_step: int,
    places: Sequence[int] | None = None,
    edge_filter: FilterWeights | None = None,
) -> Iterator[Iterator[Batch]]:
    """Batches from `first_step` on, made by a thread while the device computes.

    They hold the events at `places`, as in `step_events`. The queue is bounded. An error in making
    a batch is raised when that batch is taken.
    """
    ready: queue.Queue = queue.Queue(maxsize=_PREFETCHED)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        step = first_step
        try:
            while not stop.is_set():
                sectors = step_events(source, step, batch_size, places)
                put(graph_batch(sectors, voxdyn, tune, edge_filter))
                step += 1
        except BaseException as error:
            put(error)

    def consume() -> Iterator[Batch]:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()


def _drawn(source: EventSource, event_id: int, rng: np.random.Generator) -> Sector:
    event = load_event(source.directory, event_id)
    # By the logarithm, or of a range of pile-up 2 to 200 hardly any would be below 20.
    rfactor = np.exp(rng.uniform(np.log(source.rfactor_start), np.log(source.rfactor_end)))
    rfactor = np.clip(rfactor, source.rfactor_start, source.rfactor_end)
    thinned = thin(event, rfactor, source.noise_ratio, rng)
    if source.sector_hits is None:
        return whole(thinned)
    return draw_sector(thinned, source.sector_hits, rng)
