"""Host side: the claims about Voxel-Dynamics, measured on events that it has not seen.

The claims (arXiv:2309.14113; `CLAIMS` has them in short) are measured as points of single events.
An estimator can take gigabytes, and so can the graph of a full event, so there is one of each at a
time.
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from scipy.spatial import KDTree

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.graph_quality import min_count_scan
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.voxdyn.centroids import CentroidFit, fit_centroids
from hypertrack_jax.voxdyn.fit import (
    Centroids,
    ShowProgress,
    Training,
    count_events,
    estimator,
    open_counters,
    sample_particle_hits,
)
from hypertrack_jax.voxdyn.model import VoxelDynamics
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path
from hypertrack_jax.voxdyn.voronoi import build_index
from studies.claim_report import CLAIMS, Points
from studies.points import CentroidPoint, GraphPoint

FULL_PILEUP = 200.0
"""Mean number of collisions in a full TrackML event."""

CountC: TypeAlias = Callable[[Centroids, str, Sequence[int]], Iterator[VoxelDynamics]]
"""From centroids, a topology and numbers of events to an estimator for each number of events."""


class HeldOut(NamedTuple):
    """The events that graphs are measured on, and the settings."""

    events: Callable[[float], Iterable[Event]]
    """The events thinned to a fraction of their particles, `rfactor`; the same at every call."""
    event_ids: Collection[int]
    """Their numbers; none is among the training events."""
    judged: str | None
    """Topology of the true edges; None: the one that the estimator was fitted with."""
    min_counts: Sequence[int]
    """Smallest counts that make edges."""


class Study(NamedTuple):
    """Events and settings of the measurements."""

    models: Path
    """Directory of the fitted estimators."""
    node2nodes: Sequence[str]
    """Topologies that they were fitted with."""
    ncells: Sequence[int]
    """Their numbers of cells."""
    training: Training
    """Events to fit centroids to and to count C from, for the claims `centroids` and `events`."""
    held_out: HeldOut
    rfactors: Sequence[float]
    """Fractions of particles kept in held-out events, for the claims `pileup` and `trade`."""
    rfactor: float
    """The one fraction for the other claims."""
    shown_min_counts: Sequence[int]
    """The `min_counts` of all claims but `trade`, which takes those of `held_out`."""
    milestones: Sequence[int]
    """Numbers of events counted, for the claim `events`."""
    centroid_hits: Sequence[int]
    """Numbers of hits to fit centroids to; those below the number of cells are left out."""
    centroid_events: int
    """Events that C is counted from, for the claim `centroids`."""


def measure_claims(
    study: Study, claims: Sequence[str], count_c: CountC, progress: ShowProgress
) -> Iterator[tuple[str, Points]]:
    """Measures the claims one after another.

    Args:
      study: what to measure with.
      claims: some of `CLAIMS`.
      count_c: counts C, such as `count_snapshots` with its other arguments given.
      progress: shows how far a pass over the training events is.

    Yields:
      The name of each claim, and its points.

    Raises:
      UserError: an unknown claim, events that are both in training and held out, more events to
        count than there are, or a damaged estimator.
      FileNotFoundError: none of the estimators has been fitted.
    """
    _require_possible(study, claims)
    shown, scanned = study.shown_min_counts, study.held_out.min_counts
    held_out = study.held_out._replace(min_counts=shown)
    if {"pileup", "trade"} & {*claims}:
        # One pass serves both, since the look-ups in full events take most of the time.
        # Counts that no claim asks for could need more memory than there is.
        wanted = {"pileup": shown, "trade": scanned}
        min_counts = sorted({count for claim in claims for count in wanted.get(claim, ())})
        both = study.held_out._replace(min_counts=min_counts)
        points = [*graph_points(_stored_estimators(study, min_counts[0]), both, study.rfactors)]
        if "pileup" in claims:
            yield "pileup", [point for point in points if point.quality.min_count in shown]
        if "trade" in claims:
            yield "trade", [point for point in points if point.quality.min_count in scanned]
    if "events" in claims:
        yield "events", [*graph_points(_recounted(study, count_c), held_out, [study.rfactor])]
    if "centroids" in claims:
        yield "centroids", [*_measure_centroids(study, held_out, count_c, progress)]


def graph_points(
    estimators: Iterable[VoxelDynamics], held_out: HeldOut, rfactors: Sequence[float]
) -> Iterator[GraphPoint]:
    """Measures every estimator on the held-out events at every pile-up.

    Args:
      estimators: taken one by one, each let go before the next.
      held_out: events and `min_count`s.
      rfactors: fractions of particles kept.

    Yields:
      A point for each estimator, rfactor, event and `min_count`.
    """
    for vd in estimators:
        for rfactor in rfactors:
            for event in held_out.events(rfactor):
                yield from event_points(vd, event, held_out, rfactor)
        # Otherwise it would stay in memory while the next one is loaded.
        del vd


def centroid_points(
    num_centroid_hits: int, vd: VoxelDynamics, held_out: HeldOut, rfactor: float
) -> Iterator[CentroidPoint]:
    """Measures a division of space by its distances and by the graphs of its C.

    Args:
      num_centroid_hits: hits that the centroids were fitted to.
      vd: the division and its C.
      held_out: events and `min_count`s.
      rfactor: fraction of particles kept.

    Yields:
      A point for each event and `min_count`.
    """
    centroids = np.asarray(vd.centroids)
    for event in held_out.events(rfactor):
        distance2 = mean_distance2(centroids, event)
        for point in event_points(vd, event, held_out, rfactor):
            yield CentroidPoint(num_centroid_hits, distance2, point)


def event_points(
    vd: VoxelDynamics, event: Event, held_out: HeldOut, rfactor: float
) -> list[GraphPoint]:
    """Measures the graph of one event at every `min_count`, from one look-up."""
    judged = held_out.judged or vd.node2node
    # Without a name here, the edges are freed before those of the next event.
    qualities = min_count_scan(
        event,
        predict_edges(vd, event.position, min(held_out.min_counts)),
        judged,
        held_out.min_counts,
    )
    pileup = FULL_PILEUP * rfactor
    return [
        GraphPoint(
            vd.node2node, judged, vd.num_cells, vd.num_events, pileup, event.event_id, quality
        )
        for quality in qualities
    ]


def mean_distance2(centroids: Float32[np.ndarray, "cell 3"], event: Event) -> float | None:
    """Mean squared distance in mm^2 of the particle hits from their nearest centroid."""
    position = event.position[event.hit_particle != NOISE]
    if len(position) == 0:
        return None
    distance, _ = KDTree(centroids).query(position)
    return float(np.mean(distance**2))


def count_snapshots(
    centroids: Centroids,
    node2node: str,
    milestones: Sequence[int],
    training: Training,
    directory: Path,
    progress: ShowProgress,
) -> Iterator[VoxelDynamics]:
    """Counts C and gives the estimator at every milestone.

    Args:
      centroids: the division of space.
      node2node: topology of the true edges.
      milestones: numbers of events; each event is counted once, in the order of `training`.
      training: the events.
      directory: where counts are kept until the end.
      progress: shows progress.

    Yields:
      The estimator at each milestone, from the fewest events to the most.

    Raises:
      OSError: no space or no permission.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as counts:
        counters = open_counters(Path(counts), [centroids], [node2node], training.num_copies)
        index = jax.tree.map(jnp.asarray, build_index(centroids.fit.centroids))
        for milestone in sorted({*milestones}):
            part = training._replace(event_ids=training.event_ids[:milestone])
            count_events(part, [index], counters, progress)
            (counter,) = counters.values()
            yield estimator(node2node, centroids, counter)


def _measure_centroids(
    study: Study, held_out: HeldOut, count_c: CountC, progress: ShowProgress
) -> Iterator[CentroidPoint]:
    """Fits centroids to parts of one sample of hits; larger parts contain the smaller ones."""
    training = study.training
    ids = progress(training.event_ids, "sampling hits")
    hits = sample_particle_hits(
        map(training.load_event, ids), max(study.centroid_hits), training.seed
    )
    space = np.stack([hits.min(axis=0), hits.max(axis=0)])
    sizes = sorted({min(size, len(hits)) for size in study.centroid_hits})
    for ncell in study.ncells:
        for size in (size for size in sizes if size >= ncell):
            # The hits are in random order, so the first ones are a sample, too.
            fit = fit_centroids(hits[:size], ncell, training.num_iterations, training.seed)
            for node2node in study.node2nodes:
                for vd in count_c(Centroids(fit, space), node2node, [study.centroid_events]):
                    yield from centroid_points(size, vd, held_out, study.rfactor)
                    del vd


def _stored_estimators(study: Study, min_count: int) -> Iterator[VoxelDynamics]:
    """The estimators that have been fitted, one by one and without a reference to them."""
    wanted = list(product(study.node2nodes, study.ncells))
    fitted = [pair for pair in wanted if voxdyn_path(study.models, *pair).is_file()]
    # If there are none, `load_voxdyn` raises an error.
    for node2node, ncell in fitted or wanted:
        path = voxdyn_path(study.models, node2node, ncell)
        yield load_voxdyn(path, node2node, ncell, min_count)


def _recounted(study: Study, count_c: CountC) -> Iterator[VoxelDynamics]:
    """Counts C anew with the centroids of every fitted estimator."""
    for centroids, node2node in map(_division_of, _stored_estimators(study, 1)):
        yield from count_c(centroids, node2node, study.milestones)


def _division_of(vd: VoxelDynamics) -> tuple[Centroids, str]:
    """Centroids and topology of an estimator."""
    fit = CentroidFit(np.array(vd.centroids), vd.objective)
    return Centroids(fit, vd.space), vd.node2node


def _require_possible(study: Study, claims: Sequence[str]) -> None:
    unknown = [claim for claim in claims if claim not in CLAIMS]
    if unknown:
        raise UserError(f"--claims={unknown[0]} is unknown; choose some of {', '.join(CLAIMS)}.")
    shared = {*study.training.event_ids} & {*study.held_out.event_ids}
    if shared:
        raise UserError(
            f"event {min(shared)} is both a training event and held out; choose other events with "
            "--eval_start and --eval_end."
        )
    num_events = len(study.training.event_ids)
    for flag, claim, most in (
        ("milestones", "events", max(study.milestones)),
        ("centroid_events", "centroids", study.centroid_events),
    ):
        if claim in claims and most > num_events:
            raise UserError(
                f"--{flag}={most} is more than the {num_events} training events; choose fewer, or "
                "a wider range with --event_start and --event_end."
            )
