"""Host side: Voxel-Dynamics at scale, each piece of work beside its peers in the same run.

The peers are scipy's KDTree (cKDTree in C) and faiss, which comes with the extra `bench`. Work
whose memory is measured runs in a process of its own.
"""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from scipy.spatial import KDTree

from benchmarks.timing import Seconds, Timing, alone, in_turn, run_once, timing_of
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import load_event
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.streams import stream
from hypertrack_jax.voxdyn.centroids import fit_centroids
from hypertrack_jax.voxdyn.fit import Training, fit_voxdyns, sample_particle_hits
from hypertrack_jax.voxdyn.model import pad_hits
from hypertrack_jax.voxdyn.storage import load_voxdyn, save_voxdyn, voxdyn_path
from hypertrack_jax.voxdyn.voronoi import assign_cells, build_index

FLAT_HITS = 4096
"""Hits that the exhaustive search is timed on; its time grows in proportion to them."""
THREADS = 2


class Setting(NamedTuple):
    """What is measured, and on what."""

    data: Path
    """Directory of the event files."""
    event: int
    """The event that is assigned and looked up; not one of the fit."""
    training: Sequence[int]
    """Events to fit and count."""
    models: Path
    """Directory of Voxel-Dynamics files; the counted one is written there."""
    node2nodes: Sequence[str]
    """Topologies of the graphs. C is counted for the first; the others need a file in `models`."""
    min_count: float | int
    """Smallest count, or quantile, that makes edges."""
    assigned_cells: Sequence[int] = (65_536, 262_144, 1_048_576)
    """Numbers of cells to assign hits to."""
    fitted_cells: int = 65_536
    """Centroids to fit beside the peer."""
    counted_cells: int = 262_144
    """Cells of the C that is counted and looked up."""
    num_hits: int = 2_000_000
    """Hits of the centroid fit."""
    iterations: int = 10
    """Iterations of the centroid fit."""


def measure_voxdyn(setting: Setting, parts: Sequence[str], runs: int) -> Iterator[Timing]:
    """Times some of the parts `assign`, `centroids`, `count` and `graph`.

    Args:
      setting: events and sizes.
      parts: what to measure, in this order.
      runs: counted runs of assignments and graphs; the long fits run once.

    Yields:
      Timings. Their `suite` names the work, a slash, and who did it.

    Raises:
      UserError: an unknown part.
      ImportError: faiss is not installed.
    """
    measures = {
        "assign": partial(_measure_assign, runs=runs),
        "centroids": _measure_centroids,
        "count": _measure_count,
        "graph": partial(_measure_graph, runs=runs),
    }
    for part in parts:
        if part not in measures:
            raise UserError(f"--voxdyn_parts={part}: expected some of {', '.join(measures)}.")
    for part in parts:
        yield from measures[part](setting)


def ratios(timings: Sequence[Timing]) -> list[str]:
    """How many times faster ours is than each peer at the same work, by medians."""
    ours = {
        timing.suite.split(" / ")[0]: timing.median
        for timing in timings
        if timing.suite.endswith(" / ours")
    }
    lines = []
    for timing in timings:
        work, who = timing.suite.split(" / ")
        if who != "ours" and work in ours:
            lines.append(f"{work}: {timing.median / ours[work]:.2f} times as fast as {who}")
    return lines


def growth(timings: Sequence[Timing]) -> list[str]:
    """How the time per hit (assignment) and per edge (look-up) grows from pile-up 20 to 200."""
    by_suite = {timing.suite: timing for timing in timings}
    lines = []
    for suite, low in by_suite.items():
        high = by_suite.get(suite.replace("pile-up 20,", "pile-up 200,"))
        if "pile-up 20," not in suite or high is None:
            continue
        if " assign, " in suite:
            per_item = [timing.median / timing.hits for timing in (low, high)]
        else:
            assigned = [by_suite[t.suite.replace(" graph, ", " assign, ")] for t in (low, high)]
            per_item = [
                (timing.median - assign.median) / timing.edges
                for timing, assign in zip((low, high), assigned, strict=True)
            ]
        what = "assignment, per hit" if " assign, " in suite else "look-up, per edge"
        lines.append(
            f"{suite}, {what}: {1e9 * per_item[0]:.1f} ns, at pile-up 200 "
            f"{1e9 * per_item[1]:.1f} ns, ratio {per_item[1] / per_item[0]:.2f}"
        )
    return lines


def _measure_assign(setting: Setting, runs: int) -> Iterator[Timing]:
    faiss = _faiss()
    position = load_event(setting.data, setting.event).position
    hits = _training_hits(setting)
    for num_cells in setting.assigned_cells:
        centroids = fit_centroids(hits, num_cells, 1, seed=0).centroids
        index = jax.tree.map(jnp.asarray, build_index(centroids))
        tree, flat = KDTree(centroids), faiss.IndexFlatL2(3)
        flat.add(centroids)
        works = {
            "ours": lambda index=index: assign_cells(index, pad_hits(position)),
            f"scipy cKDTree, {THREADS} workers": lambda tree=tree: tree.query(
                position, workers=THREADS
            ),
            "faiss IndexFlatL2, scaled": lambda flat=flat: flat.search(position[:FLAT_HITS], 1),
        }
        scale = {"faiss IndexFlatL2, scaled": len(position) / FLAT_HITS}
        for who, seconds in in_turn(works, runs).items():
            factor = scale.get(who, 1)
            seconds = Seconds(*([factor * value for value in times] for times in seconds))
            yield timing_of(f"assign to {num_cells} cells / {who}", len(position), 0, seconds)


def _measure_centroids(setting: Setting) -> Iterator[Timing]:
    """One run each: the peer takes more than a minute."""
    faiss = _faiss()
    hits = _training_hits(setting)
    # Not timed: compiles.
    fit_centroids(hits, setting.fitted_cells, 1, seed=1)
    fit, seconds = run_once(
        lambda: fit_centroids(hits, setting.fitted_cells, setting.iterations, seed=0)
    )
    work = f"{setting.fitted_cells} centroids, {setting.iterations} iterations"
    ours = _objective(fit.centroids, hits)
    yield timing_of(f"{work} (objective {ours:.4f} mm^2) / ours", len(hits), 0, seconds)
    kmeans = faiss.Kmeans(
        3, setting.fitted_cells, niter=setting.iterations, max_points_per_centroid=len(hits), seed=0
    )
    _, seconds = run_once(lambda: kmeans.train(hits))
    theirs = _objective(kmeans.centroids, hits)
    yield timing_of(
        f"{work} (objective {ours:.4f} mm^2) / faiss.Kmeans (objective {theirs:.4f} mm^2)",
        len(hits),
        0,
        seconds,
    )


def _measure_count(setting: Setting) -> Iterator[Timing]:
    yield alone(_count, setting)


def _measure_graph(setting: Setting, runs: int) -> Iterator[Timing]:
    for node2node in setting.node2nodes:
        yield from alone(_graphs, setting, node2node, runs)


def _count(setting: Setting) -> Timing:
    """Seconds per event of the counting alone; the process's peak is that of the whole fit."""
    seconds = Seconds([], [])

    def progress(event_ids, what):
        wall, cpu = time.perf_counter(), time.process_time()
        yield from event_ids
        # Counting is the last of the passes over the events.
        number = len(event_ids)
        seconds.wall[:] = [(time.perf_counter() - wall) / number]
        seconds.cpu[:] = [(time.process_time() - cpu) / number]

    training = Training(
        setting.training, partial(load_event, setting.data), setting.iterations, 0, setting.num_hits
    )
    # A new directory: what an interrupted benchmark left would make the counting look fast.
    with tempfile.TemporaryDirectory() as directory:
        (vd,) = fit_voxdyns(
            training, [setting.counted_cells], setting.node2nodes[:1], Path(directory), progress
        )
    save_voxdyn(voxdyn_path(setting.models, vd.node2node, setting.counted_cells), vd)
    what = f"count {vd.node2node} pairs, {vd.num_cells} cells, {vd.num_events} events, each"
    return timing_of(f"{what} / ours", 0, len(vd.rows.columns), seconds)


def _graphs(setting: Setting, node2node: str, runs: int) -> list[Timing]:
    path = voxdyn_path(setting.models, node2node, setting.counted_cells)
    vd = load_voxdyn(path, node2node, setting.counted_cells, setting.min_count)
    full = load_event(setting.data, setting.event)
    timings = []
    for rfactor in (0.01, 0.1, 0.3, 1.0):
        position = thin(full, rfactor, -1, stream("thin for a benchmark", 0)).position
        works: dict[str, Callable[[], Any]] = {
            "assign": lambda position=position: assign_cells(vd.index, pad_hits(position)),
            "graph": lambda position=position: predict_edges(vd, position),
        }
        num_edges = len(predict_edges(vd, position).senders)
        for what, seconds in in_turn(works, runs).items():
            work = f"{node2node} {what}, pile-up {200 * rfactor:g}, {setting.counted_cells} cells"
            timings.append(
                timing_of(
                    f"{work}, min_count {vd.min_count} / ours", len(position), num_edges, seconds
                )
            )
    return timings


def _training_hits(setting: Setting) -> Float32[np.ndarray, "hit 3"]:
    # Thirty full events have more particle hits than are asked for.
    events = (load_event(setting.data, event_id) for event_id in setting.training[:30])
    return sample_particle_hits(events, setting.num_hits, seed=0)


def _objective(
    centroids: Float32[np.ndarray, "cell 3"], hits: Float32[np.ndarray, "hit 3"]
) -> float:
    """Mean squared distance of a hit from its nearest centroid, in mm^2, by a third party."""
    distance, _ = KDTree(centroids).query(hits, workers=THREADS)
    return float(np.mean(distance**2))


def _faiss() -> Any:
    try:
        # By name: type checks run where this extra is not installed.
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise MissingPackageError(
            "the voxdyn suite compares with faiss, which is missing; pip install '.[bench]'."
        ) from error
    faiss.omp_set_num_threads(THREADS)
    return faiss
