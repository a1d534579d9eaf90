"""Host side: reconstruction end to end, from hits to tracks, beside ACTS on the same events.

Each program runs at each pile-up in a process of its own, one after the other. So its peak memory
holds only this work and the modules for it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from benchmarks.peers.acts_chain import find_tracks
from benchmarks.program_cost import (
    ProgramCost,
    product_operations,
    program_cost,
)
from benchmarks.stages import gnn_products, with_graph
from benchmarks.timing import (
    Seconds,
    Timing,
    alone,
    forget_peak,
    peak_memory,
    timing_of,
)
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.metrics import TrackScores, track_scores
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import load_event
from hypertrack_jax.reconstruction.export import one_program
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.reconstruction.stages import scored_edges
from hypertrack_jax.streams import stream

_LOG = logging.getLogger(__name__)
SEED_PT = (0.15, 0.4)
"""Smallest pT of seeds in GeV: the smallest that is simulated, and a usual one."""


class EndToEnd(NamedTuple):
    """What is measured, and on what."""

    data: Path
    """Directory of the event files."""
    models: Path
    """Directory of the model and of its Voxel-Dynamics file."""
    read_tag: str
    """The model."""
    min_count: float | int | None
    """Smallest C that makes edges; None: the model's own."""
    event_ids: Sequence[int]
    rfactors: Sequence[float]
    noise_ratio: float | int | None
    """As in `thin`."""
    seed: int
    """Seed of the thinning."""
    runs: int
    """Counted runs of each event."""
    with_acts: bool
    with_cost: bool
    """Also compile the program once more to read off its cost."""


class Run(NamedTuple):
    """One event, reconstructed."""

    hit_label: Int[np.ndarray, " hit"]
    """Track of each hit; negative for none."""
    wall: float
    """Seconds, as is the next."""
    cpu: float


def measure_reconstruction(setting: EndToEnd) -> Iterator[Timing]:
    """Times the reconstruction of some events at each rfactor, by us and then by ACTS.

    Work that does not fit in the memory is left out, with a warning in the log.

    Yields:
      Timings over all runs of all events; hits, edges and scores are means over the events.

    Raises:
      FileNotFoundError: an event or the model is missing.
      ImportError: pyacts is not installed and ACTS is asked for.
    """
    programs: list[tuple[str, Callable, tuple]] = [("ours", _time_ours, ())]
    if setting.with_acts:
        programs += [(f"ACTS, seed pT > {pt:g} GeV", _time_acts, (pt,)) for pt in SEED_PT]
    for rfactor in setting.rfactors:
        for who, function, more in programs:
            suite = f"reconstruct, pile-up {200 * rfactor:g} / {who}"
            try:
                yield alone(function, setting, rfactor, suite, *more)
            except BrokenProcessPool:
                _LOG.warning(
                    "%s is left out: its process was ended, most likely for want of memory", suite
                )
            except MissingPackageError:
                raise
            except (UserError, jax.errors.JaxRuntimeError) as error:
                _LOG.warning("%s is left out: %s", suite, error)


def one_run(model: Reconstructor, event: Event) -> Run:
    """Reconstructs one event with a model, which takes the cells if it uses them."""
    wall, cpu = time.perf_counter(), time.process_time()
    tracks = model(event)
    return Run(tracks.hit_label, time.perf_counter() - wall, time.process_time() - cpu)


def time_events(
    events: Sequence[Event], run: Callable[[Event], Run], runs: int, min_hits: int, suite: str
) -> Timing:
    """The timing of some events by one program, without edges.

    Args:
      events: events with truth.
      run: reconstructs one event.
      runs: counted runs of each event, after one that compiles and one that warms up.
      min_hits: as in `track_scores`.
      suite: the work and who does it.
    """
    seconds, scores, peaks = Seconds([], []), [], []
    for event in events:
        run(event)
        idle = forget_peak()
        run(event)
        for _ in range(runs):
            done = run(event)
            seconds.wall.append(done.wall)
            seconds.cpu.append(done.cpu)
        peaks.append((peak_memory(), idle))
        scores.append(track_scores(event, done.hit_label, min_hits))
    peak, idle = max(peaks)
    num_hits = round(np.mean([len(event.position) for event in events]))
    means = {name: _mean(scores, name) for name in ("efficiency", "purity", "dms")}
    timing = timing_of(suite, num_hits, 0, seconds, idle_memory=idle, **means)
    return timing._replace(peak_memory=peak)


def reconstruction_cost(model: Reconstructor, event: Event) -> ProgramCost:
    """Operations and bytes of all stages as one program, with the first capacities of an event.

    Its products are those of the edge predictor for this event, of a single block of pairs in the
    filter, and of a single round of the search for clusters.
    """
    num_hits = len(event.position)
    begun = model.begin(event)
    cost = program_cost(jax.jit(one_program(model, num_hits)), *begun.made[0])
    # The cost counts the edge predictor's loop once; this adds the other blocks of the event.
    made = with_graph(model, begun).made
    *_, stage, _, _ = model.stages(num_hits)
    gnn = scored_edges.trace(stage.method, stage.capacities, model.shared(), *made)
    more = gnn_products(made[1].graph, model) - product_operations(gnn.jaxpr)
    return cost._replace(products=cost.products + more)


def _time_ours(setting: EndToEnd, rfactor: float, suite: str) -> Timing:
    model = Reconstructor.load(setting.read_tag, setting.models)
    if setting.min_count is not None:
        model = model.with_min_count(setting.min_count)
    events = _events(setting, rfactor)

    def run(event: Event) -> Run:
        return one_run(model, event)

    timing = time_events(events, run, setting.runs, model.tune.cluster.min_hits, suite)
    edges = [len(model(event, with_edges=True).senders) for event in events]
    # Last, because compiling once more takes memory, too.
    cost = reconstruction_cost(model, events[0]) if setting.with_cost else None
    return timing._replace(edges=round(np.mean(edges)), cost=cost)


def _time_acts(setting: EndToEnd, rfactor: float, suite: str, seed_pt: float) -> Timing:
    def run(event: Event) -> Run:
        return Run(*find_tracks(event, seed_pt))

    return time_events(_events(setting, rfactor), run, setting.runs, 4, suite)


def _events(setting: EndToEnd, rfactor: float) -> list[Event]:
    return [
        thin(
            load_event(setting.data, event_id),
            rfactor,
            setting.noise_ratio,
            stream("thin for a benchmark", setting.seed, event_id),
        )
        for event_id in setting.event_ids
    ]


def _mean(scores: Sequence[TrackScores], name: str) -> float | None:
    """The mean over the events that have the score."""
    values = [value for one in scores if (value := getattr(one, name)) is not None]
    return float(np.mean(values)) if values else None
